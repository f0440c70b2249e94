"""Error counts, validation and views against naive computations."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data.loading import Batch
from data.sources.index import scan_folder
from engine.distributed import World
from engine.precision import Precision
from engine.stopping import StopRequest
from evaluation.evaluate import score_images
from evaluation.metrics import ErrorCounts, label_ranks
from evaluation.predictions import weighted_mean
from evaluation.score_shards import ScoreShards
from evaluation.scorer import Scorer
from evaluation.validation import centre_errors
from evaluation.views import image_windows
from models.network import build_network
from tests.conftest import composed

FP32 = Precision("fp32", torch.device("cpu"))


def test_counts_against_sorting() -> None:
    torch.manual_seed(0)
    scores, labels = torch.rand(400, 20), torch.randint(20, (400,))
    counts = ErrorCounts.of(scores, labels)
    order = np.argsort(-scores.numpy(), axis=1)
    right = [label in row[:5] for row, label in zip(order, labels.numpy(), strict=True)]
    assert counts.wrong_top5 == 400 - sum(right)
    assert counts.wrong_top1 == int((order[:, 0] != labels.numpy()).sum())
    halves = ErrorCounts.of(scores[:150], labels[:150]) + ErrorCounts.of(scores[150:], labels[150:])
    assert halves == counts
    assert counts.top1_error == 100 * counts.wrong_top1 / 400


def test_ties_go_to_the_lower_class_and_nan_is_never_right() -> None:
    scores = torch.tensor([[0.5, 0.5, 0.5], [0.1, 0.2, 0.2], [math.nan, 0.2, 0.3]])
    assert label_ranks(scores[:1].repeat(3, 1), torch.tensor([0, 1, 2])).tolist() == [0, 1, 2]
    assert label_ranks(scores, torch.tensor([2, 2, 2])).tolist() == [2, 1, 3]


def test_fewer_than_five_classes() -> None:
    counts = ErrorCounts.of(torch.rand(10, 3), torch.zeros(10, dtype=torch.long))
    assert counts.wrong_top5 == 0


def test_ten_views_of_the_entire_image_and_of_its_square() -> None:
    whole = image_windows("ten", 256, 341, 224)
    assert [(w.y, w.x) for w in whole[:5]] == [(0, 0), (0, 117), (32, 0), (32, 117), (16, 59)]
    assert [w.flip for w in whole] == [False] * 5 + [True] * 5
    square = image_windows("ten", 256, 341, 224, square=True)
    assert [(w.y, w.x) for w in square[:5]] == [(0, 43), (0, 75), (32, 43), (32, 75), (16, 59)]
    assert image_windows("centre", 256, 341, 224) == [whole[4]]


@pytest.mark.parametrize(("num_images", "replaced"), [(5, 0), (5, 1), (4, 0), (6, 0)])
def test_a_validation_that_misses_images_fails(num_images: int, replaced: int) -> None:
    """Five images arrive; some could not be read."""
    bad = torch.arange(5) < replaced
    images, labels = torch.zeros(5, 8, 8, 3, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64)
    batch = Batch(images, labels, torch.zeros(5, 3), labels, labels, bad)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    mean = torch.zeros(1, 1, 3)
    options = {"precision": FP32, "world": World(0, 1, FP32.device), "num_images": num_images}
    if num_images != 5:
        with pytest.raises(AssertionError, match=f"5 images were seen in a .* of {num_images}"):
            centre_errors(network, [batch], mean, **options)
        return
    counts = centre_errors(network, [batch], mean, **options)
    assert counts.images == 5 - replaced


@pytest.mark.parametrize("square", [False, True])
def test_ten_views_against_pillow(synthetic: Path, tmp_path: Path, square: bool) -> None:
    """Scores of images against crops made one at a time with Pillow."""
    config = composed("model=small14", "model.fc=[32,32]", "init.fc_std=[0.01,0.1,0.1]")
    network = build_network(config.model, config.act, config.init, 10).eval()
    mean = torch.tensor([122.679, 116.669, 104.007]).reshape(1, 1, 3)
    scorer = Scorer(network=network, mean=mean, precision=FP32, crop=64, views="ten", square=square)
    index = scan_folder(synthetic, "val")
    chosen = np.arange(0, len(index), 41)
    loader = ["loader=torchvision", "loader.workers=0", "batch_size=3"]
    config = composed("checkpoint=x", *loader, program="eval")
    shards = ScoreShards(tmp_path, len(chosen), 10, size=4)
    stop = StopRequest(World(0, 1, torch.device("cpu")))
    score_images(scorer, index, shards, indices=chosen, scale=80, config=config, stop=stop)
    assert len(shards.pending(0, 1)) == 0
    for i, row in zip(chosen, shards.read(), strict=True):
        scores = torch.from_numpy(row)
        with Image.open(index.path(int(i))) as file:
            image = file.convert("RGB")
        short = min(image.size)
        image = image.resize((80 * image.width // short, 80 * image.height // short), 2)
        if square:
            left, top = (image.width - 79) // 2, (image.height - 79) // 2
            image = image.crop((left, top, left + 80, top + 80))
        right, bottom = image.width - 64, image.height - 64
        corners = [(0, 0), (right, 0), (0, bottom), (right, bottom)]
        total = torch.zeros(10)
        for x, y in [*corners, ((right + 1) // 2, (bottom + 1) // 2)]:
            crop = image.crop((x, y, x + 64, y + 64))
            for view in (crop, crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
                pixels = torch.from_numpy(np.asarray(view).astype(np.float32)) - mean
                with torch.no_grad():
                    total += network(pixels.permute(2, 0, 1)[None]).softmax(1)[0]
        torch.testing.assert_close(scores, total / 10, atol=1e-5, rtol=1e-4)


def test_probabilities_are_averaged_not_logits() -> None:
    class Brightness(nn.Module):
        def forward(self, images: torch.Tensor, keys: object = None) -> torch.Tensor:
            value = images.mean((1, 2, 3))
            return torch.stack([value, -value], 1)

    image = torch.zeros(8, 16, 3, dtype=torch.uint8)
    image[:, 8:] = 4
    mean = torch.zeros(1, 1, 3)
    scorer = Scorer(network=Brightness(), mean=mean, precision=FP32, crop=8, views="ten")
    left, middle, right = [torch.tensor([v, -v]).softmax(0) for v in (0.0, 2.0, 4.0)]
    expected = (4 * left + 2 * middle + 4 * right) / 10
    torch.testing.assert_close(scorer.scores(image[None])[0], expected)


def test_scales_are_combined_by_weighted_mean() -> None:
    rng = np.random.default_rng(0)
    scores = [rng.random((3, 4), np.float32) for _ in range(3)]
    expected = (1 * scores[0] + 2 * scores[1] + 5 * scores[2]) / 8
    np.testing.assert_allclose(weighted_mean(scores, [1, 2, 5]), expected, rtol=1e-6)
