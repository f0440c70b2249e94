"""Dense testing against a naive evaluator: a loop over windows, bins and fc layers."""

import math

import pytest
import torch
from torch import Tensor

from data.normalise import CHANNEL_MEAN
from engine.precision import Precision
from evaluation.dense import DenseHead, dense_scores, window_size
from evaluation.windows import Bin, PooledWindows, pyramid_bins
from models.network import Network, build_network
from scripts.benchmarks.dense import DenseBenchmark
from tests.conftest import composed, run_program

CPU = torch.device("cpu")
FP32, BF16 = Precision("fp32", CPU), Precision("bf16", CPU)
MEAN = torch.tensor(CHANNEL_MEAN).reshape(1, 1, 3)
WIDTHS = {"A": [6, 8, 10, 12], "small14": [6, 8, 12]}


def narrow(model: str, act: str, *overrides: str) -> Network:
    """The architecture with few filters and logits far from equal."""
    whole = ["model.fc=[24,20]"]
    config = composed(f"model={model}", f"act={act}", *whole, *overrides)
    for stage, filters in zip(config.model.stages, WIDTHS[model], strict=True):
        stage.filters = filters
    config.init.fc_std = [0.1, 0.3, 0.3]
    network = build_network(config.model, config.act, config.init, 7).eval()
    with torch.no_grad():
        for conv in (m for m in network.trunk if isinstance(m, torch.nn.Conv2d)):
            conv.bias.uniform_(-20, 20, generator=torch.Generator().manual_seed(1))
        images = pictures(3, 224, 224).float() - MEAN
        network.head.fc3.weight /= network(images.permute(0, 3, 1, 2)).std() / 1.5
    return network


def pictures(num: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Blotches and noise: maxima lie in different places for neighbouring windows."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, 3, height // 20 + 2, width // 20 + 2, generator=generator) * 200
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    noise = torch.rand(num, 3, height, width, generator=generator) * 55
    return (smooth + noise).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def naive_features(window: Tensor, levels: list[int]) -> Tensor:
    """[C, h, w] -> [C * bins] in fc1's own order."""
    _, height, width = window.shape
    features = []
    for n in levels:
        for channel in window:
            for i in range(n):
                for j in range(n):
                    top, bottom = math.floor(i * height / n), math.ceil((i + 1) * height / n)
                    left, right = math.floor(j * width / n), math.ceil((j + 1) * width / n)
                    features.append(channel[top:bottom, left:right].max())
    return torch.stack(features)


def windows_of(maps: Tensor, side: int) -> list[Tensor]:
    """All windows [C, side, side] of a map [C, h, w], no larger than the map along either axis."""
    height, width = min(side, maps.shape[1]), min(side, maps.shape[2])
    return [
        maps[:, y : y + height, x : x + width]
        for y in range(maps.shape[1] - height + 1)
        for x in range(maps.shape[2] - width + 1)
    ]


@torch.no_grad()
def naive_scores(network: Network, image: Tensor, mean: Tensor, side: int) -> tuple[Tensor, int]:
    """Mean probabilities [K] over the windows of one image, and the number of windows."""
    total, num = torch.zeros(7), 0
    for pixels in (image, image.flip(1)):
        maps = network.trunk((pixels.float() - mean).permute(2, 0, 1)[None])[0]
        for window in windows_of(maps, side):
            logits = network.head(network.spp(window[None]))[0]
            total, num = total + logits.softmax(0), num + 1
    return total / num, num


@pytest.mark.parametrize(
    ("model", "crop", "side"), [("A", 224, 14), ("A", 112, 7), ("small14", 224, 18), ("C", 224, 14)]
)
def test_a_window_is_the_map_of_a_training_crop(model: str, crop: int, side: int) -> None:
    config = composed(f"model={model}")
    with torch.device("meta"):
        network = build_network(config.model, config.act, config.init, 7, seed=None)
    assert window_size(network.trunk, crop) == side


def test_bins_of_fourteen() -> None:
    bins = pyramid_bins([3], 14, 14)
    assert bins[:4] == [Bin(0, 0, 5, 5), Bin(0, 4, 5, 6), Bin(0, 9, 5, 5), Bin(4, 0, 6, 5)]
    assert {(b.height, b.width) for b in pyramid_bins([7, 2, 1], 14, 14)} == {
        (2, 2),
        (7, 7),
        (14, 14),
    }


@pytest.mark.parametrize("levels", [[7, 3, 2, 1], [6, 3, 2, 1], [5]])
@pytest.mark.parametrize(("window", "h", "w"), [(14, 15, 17), (7, 9, 7), (18, 5, 21), (14, 2, 3)])
def test_pooled_windows_against_loops(levels: list[int], window: int, h: int, w: int) -> None:
    maps = torch.randn(2, 2, h, w, generator=torch.Generator().manual_seed(0)) - 9
    pooled = PooledWindows(maps, levels, window)
    expected = [
        naive_features(part, levels)
        for image_maps in maps
        for part in windows_of(image_maps, window)
    ]
    assert len(pooled) == len(expected) == 2 * pooled.per_image
    num_bins = [n * n for n in levels]
    levelled = torch.stack(expected).split([2 * n for n in num_bins], 1)
    # From (level, channel, bin) to (level, bin, channel).
    order = torch.cat([x.unflatten(1, (2, -1)).mT.flatten(1) for x in levelled], 1)
    assert torch.equal(pooled.features(0, len(pooled)), order)
    assert torch.equal(pooled.features(1, 2), order[1:2])


# 225 and 257: odd sizes. The last ones: 4:1, 1:4, smaller than a view along one axis, along both.
SHAPES = [(256, 341), (257, 257), (225, 299), (225, 900), (900, 224), (100, 250), (120, 90)]


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize(("model", "act"), [("A", "prelu"), ("A", "relu"), ("small14", "prelu")])
def test_scores_against_the_naive_evaluator(model: str, act: str, height: int, width: int) -> None:
    network = narrow(model, act)
    side = {"A": 14, "small14": 18}[model]
    image = pictures(1, height, width)
    scores = dense_scores(network.trunk, DenseHead(network, 224, FP32), image, MEAN, FP32)
    expected, num = naive_scores(network, image[0], MEAN, side)
    assert num > 2 or min(height, width) < 224
    torch.testing.assert_close(scores[0], expected, atol=1e-5, rtol=0)
    assert scores.max() > 0.2  # equal scores would always agree


@pytest.mark.parametrize(("model", "side"), [("A", 14), ("small14", 18)])
def test_maps_that_are_negative_everywhere(model: str, side: int) -> None:
    network = narrow(model, "prelu")
    last = [m for m in network.trunk if isinstance(m, torch.nn.Conv2d)][-1]
    image = pictures(1, 240, 300)
    with torch.no_grad():
        last.bias.fill_(-600)
        maps = network.trunk((image.float() - MEAN).permute(0, 3, 1, 2))
        assert maps.max() < 0 < maps.std()
    scores = dense_scores(network.trunk, DenseHead(network, 224, FP32), image, MEAN, FP32)
    expected, _ = naive_scores(network, image[0], MEAN, side)
    torch.testing.assert_close(scores[0], expected, atol=1e-5, rtol=0)


def test_windows_of_a_network_trained_on_small_crops() -> None:
    network, image = narrow("A", "prelu"), pictures(1, 128, 171)
    scores = dense_scores(network.trunk, DenseHead(network, 112, FP32), image, MEAN, FP32)
    expected, num = naive_scores(network, image[0], MEAN, 7)
    assert num == 2 * 2 * 4
    torch.testing.assert_close(scores[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", ["A", "small14"])
def test_an_image_of_one_window_scores_as_in_the_networks_forward(model: str) -> None:
    network, images = narrow(model, "prelu"), pictures(2, 224, 224)
    scores = dense_scores(network.trunk, DenseHead(network, 224, FP32), images, MEAN, FP32)
    with torch.no_grad():
        views = torch.cat([images, images.flip(2)]) - MEAN
        expected = network(views.permute(0, 3, 1, 2)).softmax(1).unflatten(0, (2, -1)).mean(0)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)


def test_batches_chunks_and_order_change_nothing() -> None:
    network, images = narrow("A", "prelu"), pictures(5, 250, 310)
    head = DenseHead(network, 224, FP32)
    scores = dense_scores(network.trunk, head, images, MEAN, FP32)
    assert torch.equal(scores, dense_scores(network.trunk, head, images, MEAN, FP32))
    for chunk in (1, 7, 10_000):
        small_chunks = DenseHead(network, 224, FP32, chunk=chunk)
        chunked = dense_scores(network.trunk, small_chunks, images, MEAN, FP32, pixels=200_000)
        torch.testing.assert_close(chunked, scores, atol=1e-6, rtol=0)
    one_by_one = [dense_scores(network.trunk, head, image[None], MEAN, FP32) for image in images]
    torch.testing.assert_close(torch.cat(one_by_one), scores, atol=1e-6, rtol=0)
    reversed_order = dense_scores(network.trunk, head, images.flip(0), MEAN, FP32)
    torch.testing.assert_close(reversed_order.flip(0), scores, atol=1e-6, rtol=0)


def test_average_of_logits() -> None:
    network, images = narrow("A", "prelu"), pictures(2, 240, 240)
    head = DenseHead(network, 224, FP32, average="logits")
    mean_logits = dense_scores(network.trunk, head, images, MEAN, FP32)
    with torch.no_grad():
        for image, logits in zip(images, mean_logits, strict=True):
            views = torch.stack([image, image.flip(1)]) - MEAN
            maps = network.trunk(views.permute(0, 3, 1, 2))
            windows = torch.stack(
                [window for image_maps in maps for window in windows_of(image_maps, 14)]
            )
            expected = network.head(network.spp(windows)).mean(0)
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="average=scores"):
        DenseHead(network, 224, FP32, average="scores")


def test_the_mean_image_is_warped_and_not_mirrored() -> None:
    network, image = narrow("A", "relu"), pictures(1, 230, 260)
    ramp = torch.linspace(0, 200, 224)[None, :, None].expand(224, 224, 3)
    x = ((torch.arange(260) + 0.5) * 224 / 260 - 0.5).clamp(0, 223) * 200 / 223
    expected, _ = naive_scores(network, image[0], x[None, :, None].expand(230, 260, 3), 14)
    head = DenseHead(network, 224, FP32)
    scores = dense_scores(network.trunk, head, image, ramp, FP32)
    torch.testing.assert_close(scores[0], expected, atol=1e-5, rtol=0)
    assert (scores - dense_scores(network.trunk, head, image, MEAN, FP32)).abs().max() > 1e-3


def test_bf16_runs_and_agrees_within_its_precision() -> None:
    network, images = narrow("A", "prelu"), pictures(2, 230, 250)
    exact = dense_scores(network.trunk, DenseHead(network, 224, FP32), images, MEAN, FP32)
    head = DenseHead(network, 224, BF16)
    assert head.weight.dtype == torch.bfloat16
    scores = dense_scores(network.trunk, head, images, MEAN, BF16)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.sum(1), torch.ones(2))
    torch.testing.assert_close(scores, exact, atol=0.05, rtol=0)


PANORAMA = """
import resource, torch
from engine.precision import Precision
from evaluation.dense import DenseHead, dense_scores
from models.network import build_network
from tests.conftest import composed
config = composed("model=A", "act=prelu")
network = build_network(config.model, config.act, config.init, 1000)
network = network.to(memory_format=torch.channels_last)
precision = Precision("fp32", torch.device("cpu"))
images = torch.randint(256, (1, 480, 3840, 3), dtype=torch.uint8)
mean = torch.zeros(1, 1, 3)
scores = dense_scores(network.trunk, DenseHead(network, 224, precision), images, mean, precision)
assert scores.shape == (1, 1000) and abs(scores.sum() - 1) < 1e-4
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_a_panorama_through_model_a_needs_less_than_two_and_a_half_gigabytes() -> None:
    done = run_program("-c", PANORAMA)
    assert float(done.stdout.split()[-1]) * 2**30 < 2.5e9, done.stdout


def test_benchmark_rows() -> None:
    options = {"model": "small14", "crop": 112, "device": "cpu", "overrides": ("model.fc=[32,32]",)}
    benchmark = DenseBenchmark(scales=(128, 150), rounds=1, **options)
    rows = benchmark.measure()
    scored = ["ours", "window_loop", "unfold"]
    timed = ["trunk", "head", "head_bound"]
    assert [row.path for row in rows] == [*scored, *timed] * 2
    assert [row.scale for row in rows] == [128] * 6 + [150] * 6
    assert all(row.images_per_second > 0 for row in rows)
    for row in rows:
        assert (row.max_error is not None and row.max_error < 1e-5) == (row.path in scored)
    assert len(benchmark.as_table(rows).splitlines()) == 3 + len(rows)
