"""Views, the projection of [11], shards, ensembles and errors, against naive computations."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from engine.precision import Precision
from evaluation.evaluate import batch_by_size
from evaluation.metrics import count_errors, interval, per_class
from evaluation.predictions import (
    Predictions,
    ensemble,
    load_predictions,
    save_predictions,
)
from evaluation.projection import map_geometry
from evaluation.score_shards import ScoreShards
from evaluation.scorer import Scorer
from evaluation.views import default_scales, full_image_scale, image_windows, scale_weights
from models.network import Network, build_network
from tests.conftest import composed

FP32 = Precision("fp32", torch.device("cpu"))


def network(model: str) -> Network:
    config = composed(f"model={model}", "model.fc=[16,16]", "init.fc_std=[0.01,0.1,0.1]")
    return build_network(config.model, config.act, config.init, 10).eval()


def test_grid_is_5_by_5_from_edge_to_edge() -> None:
    windows = image_windows("grid", 384, 500, 224)
    assert len(windows) == 50
    assert {w.y for w in windows} == {0, 40, 80, 120, 160}
    assert {w.x for w in windows} == {0, 69, 138, 207, 276}


def test_sparse_has_18_views_and_6_at_the_crops_own_scale() -> None:
    assert len(set(image_windows("sparse", 256, 341, 224))) == 18
    assert len(set(image_windows("sparse", 224, 298, 224))) == 6
    scales = default_scales("sparse", 224, 256)
    assert scales == [224, 256, 300, 360, 448, 560]
    assert full_image_scale(scales, 256) == 256
    # 6 + 5 * 18 = 96 views and 2 of the full image ([11])
    assert scale_weights("sparse", scales, 224, 256) == [6, 20, 18, 18, 18, 18]
    assert scale_weights("dense", [256, 384, 480], 224, 256) == [1, 1, 1]


@pytest.mark.parametrize(
    ("model", "offset", "stride"),
    [("A", 7, 16), ("C", 7, 16), ("vgg19_spp", 7.5, 16), ("small14", 8, 12)],
)
def test_centres_of_receptive_fields(model: str, offset: float, stride: int) -> None:
    """The input that reaches a position of the map is centred at offset + stride * i."""
    geometry = map_geometry(network(model).trunk)
    assert (geometry.offset, geometry.stride) == (offset, stride)


def test_centres_of_receptive_fields_match_the_gradient() -> None:
    trunk = network("small14").trunk.double()
    with torch.no_grad():
        for parameter in trunk.parameters():  # positive everywhere: all paths show
            parameter.fill_(0.01)
    images = torch.rand(1, 3, 224, 224, dtype=torch.double, requires_grad=True)
    trunk(images)[0, :, 9, 9].sum().backward()
    assert images.grad is not None
    rows = images.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    geometry = map_geometry(trunk)
    centre = (rows.min() + rows.max()).item() / 2
    assert abs(centre - (geometry.offset + 9 * geometry.stride)) <= 3  # max-pools drop some paths


def test_a_window_as_large_as_the_image_covers_the_whole_map() -> None:
    for model, size in (("A", 14), ("small14", 18)):
        geometry = map_geometry(network(model).trunk)
        assert geometry.project(0, 224, size) == slice(0, size)
        shifted = geometry.project(2 * geometry.stride, 224, size + 10)
        assert shifted == slice(2, size + 2)


def test_sparse_views_against_a_loop() -> None:
    torch.manual_seed(0)
    net = network("small14")
    image = torch.randint(0, 256, (80, 131, 3), dtype=torch.uint8)
    mean = torch.zeros(1, 1, 3)
    options = {"network": net, "mean": mean, "precision": FP32, "crop": 64}
    scorer = Scorer(views="sparse", full_image_scale=80, **options)
    expected = torch.zeros(10)
    geometry = map_geometry(net.trunk)
    with torch.no_grad():
        for flip in (False, True):
            view = image.flip(1) if flip else image
            maps = net.trunk(view.permute(2, 0, 1)[None].float())
            centres = [geometry.offset + geometry.stride * i for i in range(20)]
            count = 0
            for top in (0, 8, 16):
                for left in (0, 34, 67):  # centre and edges of 131 - 64 = 67
                    rows = [i for i in range(maps.shape[2]) if top - 0.5 < centres[i] < top + 63.5]
                    columns = [
                        i for i in range(maps.shape[3]) if left - 0.5 < centres[i] < left + 63.5
                    ]
                    window = maps[:, :, rows][:, :, :, columns]
                    expected += net.head(net.spp(window)).softmax(1)[0]
                    count += 1
            expected += net.head(net.spp(maps)).softmax(1)[0]
    torch.testing.assert_close(scorer.scores(image[None])[0], expected / 20, atol=1e-6, rtol=1e-5)


def test_map_and_crop_differ_by_the_padding_of_the_crop_only() -> None:
    """A crop is padded with zeros where the whole image continues.

    With one 3 x 3 convolution before each of A's pools, positions beyond the padding's reach from
    the crop's edge see the same pixels either way; the others do not.
    """
    config = composed("model=A", "model.fc=[16,16]")
    for stage in config.model.stages:
        stage.convs = 1
    trunk = build_network(config.model, config.act, config.init, 10).eval().trunk
    geometry = map_geometry(trunk)
    image = 50 * torch.randn(1, 3, 320, 352)
    with torch.no_grad():
        whole, crop = trunk(image), trunk(image[:, :, 32 : 32 + 224, 64 : 64 + 224])
    rows = geometry.project(32, 224, whole.shape[2])
    columns = geometry.project(64, 224, whole.shape[3])
    gap = (whole[:, :, rows, columns] - crop).abs().amax((0, 1))
    reach = 2  # positions: 3 + 4 + 8 + 16 pixels of padding on the way, 16 pixels apart
    assert gap[reach:-reach, reach:-reach].max() < 1e-3
    assert gap[0].min() > 0.1
    assert gap[:, -1].min() > 0.1


def test_logits_are_averaged_when_asked() -> None:
    net = network("small14")
    image = torch.randint(0, 256, (1, 70, 80, 3), dtype=torch.uint8)
    options = {"network": net, "mean": torch.zeros(1, 1, 3), "precision": FP32, "crop": 64}
    scorer = Scorer(views="ten", average="logits", **options)
    with torch.no_grad():
        crops = [
            (view[:, y : y + 64, x : x + 64]).permute(0, 3, 1, 2).float()
            for view in (image,)
            for y, x in ((0, 0), (0, 16), (6, 0), (6, 16), (3, 8))
        ]
        logits = [net(crop) for crop in crops] + [net(crop.flip(3)) for crop in crops]
    torch.testing.assert_close(scorer.scores(image), torch.stack(logits).mean(0))


def test_images_are_batched_by_size_and_none_is_lost() -> None:
    sizes = [(4, 5), (5, 4), (4, 5), (4, 4), (5, 4), (4, 5), (4, 5)]
    images = [(i, torch.full((h, w, 3), i, dtype=torch.uint8)) for i, (h, w) in enumerate(sizes)]
    seen = []
    for positions, pixels in batch_by_size(iter(images), 2):
        assert len(positions) == len(pixels) <= 2
        for position, image in zip(positions, pixels, strict=True):
            assert image.shape[:2] == sizes[position]
            assert (image == position).all()
            seen.append(position)
    assert sorted(seen) == list(range(7))


def test_shards_resume_where_they_stopped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((10, 3), np.float32)
    first = ScoreShards(tmp_path, 10, 3, size=4)
    for position in (0, 2, 3, 1, 4, 5):  # the second shard stays unfinished
        first.put(position, scores[position])
    again = ScoreShards(tmp_path, 10, 3, size=4)  # as after a kill
    assert again.pending(0, 1).tolist() == [4, 5, 6, 7, 8, 9]
    assert again.pending(0, 2).tolist() == [8, 9]
    assert again.pending(1, 2).tolist() == [4, 5, 6, 7]
    for position in range(4, 10):
        again.put(position, None if position == 7 else scores[position])
    expected = scores.copy()
    expected[7] = math.nan
    np.testing.assert_array_equal(again.read(), expected)
    counts = count_errors(again.read(), np.zeros(10, np.int64))
    assert counts.images == 9  # the unreadable image does not count


def test_unfinished_shards_are_kept_on_a_stop(tmp_path: Path) -> None:
    """Stopped twice, with a different number of processes each time; no image is scored twice."""
    scores = np.random.default_rng(0).random((10, 3), np.float32)
    first = ScoreShards(tmp_path, 10, 3, size=4)
    for position in (0, 2, 3, 1, 5, 4, 8):
        first.put(position, None if position == 5 else scores[position])
    first.keep()
    second = [ScoreShards(tmp_path, 10, 3, size=4) for _ in range(2)]
    assert [shards.pending(rank, 2).tolist() for rank, shards in enumerate(second)] == [[9], [6, 7]]
    second[1].put(7, scores[7])
    second[1].keep()
    third = ScoreShards(tmp_path, 10, 3, size=4)
    assert third.pending(0, 1).tolist() == [6, 9]
    for position in (6, 9):
        third.put(position, scores[position])
    scores[5] = math.nan
    np.testing.assert_array_equal(third.read(), scores)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"part-0000{shard}.npy" for shard in range(3)
    ]


def predictions(scores: np.ndarray, images: str = "a") -> Predictions:
    return Predictions(scores, np.array([0, 1, 1]), ["x", "y"], images)


def test_ensembles_are_weighted_means_and_image_lists_never_mix(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((3, 2), np.float32), rng.random((3, 2), np.float32)
    mixed = ensemble({"first": predictions(first), "second": predictions(second)}, [3, 1])
    np.testing.assert_allclose(mixed.scores, (3 * first + second) / 4, rtol=1e-6)
    with pytest.raises(UserError, match="second and first are for different image lists"):
        ensemble({"first": predictions(first), "second": predictions(second, "b")}, None)
    save_predictions(tmp_path / "p.npz", mixed)
    kept = load_predictions(tmp_path / "p.npz")
    assert (kept.images, kept.classes) == (mixed.images, mixed.classes)
    np.testing.assert_allclose(kept.scores, mixed.scores, atol=5e-4)
    (tmp_path / "p.npz").write_bytes((tmp_path / "p.npz").read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        load_predictions(tmp_path / "p.npz")


def test_interval_is_wilsons() -> None:
    # Wilson's interval solves |p - wrong / n| = z sqrt(p (1 - p) / n) for p.
    for wrong, images in ((0, 50), (7, 50), (12986, 50_000), (50, 50)):
        for bound in interval(wrong, images):
            p = bound / 100
            gap = 1.959964 * math.sqrt(p * (1 - p) / images)
            assert abs(p - wrong / images) == pytest.approx(gap, abs=1e-7)


def test_errors_of_each_class() -> None:
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [np.nan, 0]], np.float32)
    errors = per_class(scores, np.array([0, 1, 1, 1]), ["cat", "dog"])
    rows = [each.as_dict() for each in errors]
    assert [(r["class"], r["images"], r["top1_error"]) for r in rows] == [
        ("cat", 1, 0.0),
        ("dog", 2, 50.0),
    ]
