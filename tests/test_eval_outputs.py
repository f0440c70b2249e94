"""eval.py replaces only its own earlier results; its figure shows what the network sees."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from configs.schema import EvalConfig
from configs.validate import validate_eval
from evaluation.picture_figure import Picture, draw_pictures
from evaluation.result import check_outputs, result_path
from tests.closed import refusal, skip_unbound
from tests.conftest import composed
from tests.pictures import encoded, picture


def config_of(*overrides: str) -> EvalConfig:
    return composed("checkpoint=a.pt", *overrides, program="eval")


@pytest.mark.parametrize(
    ("options", "there"),
    [
        (["images=cat.png"], "cat.png"),  # the picture itself
        (["images=dog.png"], "cat.json"),
        (["split=test"], "cat.txt"),
        (["split=test"], "cat.json"),
        ([], "cat.json"),
    ],
)
def test_other_files_are_not_replaced(tmp_path: Path, options: list[str], there: str) -> None:
    out = tmp_path / "cat.json"
    config = config_of(*options, f"out={out}")
    validate_eval(config)
    check_outputs(config, out)
    for content in ("[1, 2]", "{}", "not JSON"):
        (tmp_path / there).write_text(content)
        with pytest.raises(UserError, match=f"{there} already exists"):
            check_outputs(config, out)


@pytest.mark.parametrize(
    ("options", "beside"), [(["images=dog.png"], ".png"), (["split=test"], ".txt"), ([], ".png")]
)
def test_earlier_results_are_replaced(tmp_path: Path, options: list[str], beside: str) -> None:
    out = tmp_path / "a.json"
    config = config_of(*options, f"out={out}")
    earlier = {"images": config.images, "split": config.split}
    out.write_text(json.dumps({"config": earlier}))
    out.with_suffix(beside).write_bytes(b"written with it")
    check_outputs(config, out)
    if options:  # of another kind, it wrote nothing beside it
        out.write_text(json.dumps({"config": {"images": None, "split": "val"}}))
        with pytest.raises(UserError, match=f"a{beside} already exists"):
            check_outputs(config, out)


def name_of(*overrides: str, checkpoint: str = "runs/x/checkpoints/last.pt") -> str:
    config = composed(f"checkpoint={checkpoint}", *overrides, program="eval")
    validate_eval(config)
    return str(result_path(config, [Path(path) for path in config.checkpoints]))


def test_different_results_have_different_names() -> None:
    pair = "[a/last.pt,b/last.pt]"
    plain = name_of()
    names = [
        plain,
        *(name_of(f"views={views}") for views in ("ten", "dense")),
        *(name_of(f"data.root={root}") for root in ("/new/imagenet", "/other/imagenet")),
        *(name_of(f"images={images}") for images in ("a/cat.png", "b/cat.png", "[a/cat.png,c]")),
        *(name_of(f"precision={precision}") for precision in ("bf16", "fp32")),
        name_of("split=test"),
        name_of(checkpoint="runs/x/checkpoints/last.npz"),
        *(name_of(checkpoint=f"[runs/x/checkpoints/last.pt,{file}]") for file in ("b.pt", "c.pt")),
        *(name_of(f"weights=[{w},1]", checkpoint=pair) for w in (1, 2)),
        name_of(checkpoint=pair),
    ]
    assert plain == "runs/x/result-last-centre.json"
    assert len(set(names)) == len(names)
    assert len({name.casefold() for name in names}) == len(names)
    assert name_of("data.root=/new/imagenet/.") == names[3]  # the same command, typed otherwise
    long = name_of(f"images={200 * '漢'}.jpg", f"data.root=/{200 * 'ä'}")
    assert len(Path(long).name.encode()) < 255


def test_outputs_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    with pytest.raises(UserError, match=r"out=a.png must end in .json"):
        validate_eval(config_of("images=b.png", "out=a.png"))
    missing = tmp_path / "missing" / "r.json"
    with pytest.raises(UserError, match=r"cannot write .*r.json .No such file.*; give out="):
        check_outputs(config_of(f"out={missing}"), missing)
    for path, sentence in (
        ("missing/p.npz", r"cannot write save_predictions=.*p.npz .No such file"),
        ("data.npz", "holds no predictions .*would replace it"),
        ("folder.npz", "there are no predictions .*would replace it"),
        ("a.npz", "would replace one of the networks"),
    ):
        np.savez(tmp_path / "data.npz", images=np.arange(3))
        (tmp_path / "folder.npz").mkdir(exist_ok=True)
        options = [f"out={out}", f"save_predictions={tmp_path / path}"]
        config = composed(f"checkpoint={tmp_path / 'a.npz'}", *options, program="eval")
        with pytest.raises(UserError, match=sentence):
            check_outputs(config, out)
    before = sorted(tmp_path.iterdir())
    check_outputs(config_of(f"out={out}", f"save_predictions={tmp_path / 'new.npz'}"), out)
    assert sorted(tmp_path.iterdir()) == before


def test_a_read_only_run_is_refused_before_its_checkpoint_is_loaded(tmp_path: Path) -> None:
    """The damaged checkpoint is not read."""
    skip_unbound()
    (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    tmp_path.chmod(0o500)
    said = refusal("eval.py", f"checkpoint={tmp_path}/last.pt", "device=cpu")
    assert "Permission denied); give out=FILE.json" in said


def test_the_figure_shows_what_the_network_sees(tmp_path: Path) -> None:
    """The high byte of 16-bit pixels, which a plain conversion would clip to white."""
    grey = picture(60, 80)[..., 0]
    shown = []
    for k, pixels in enumerate((grey, (grey.astype(np.uint16) << 8) + 77)):
        image = encoded(Image.fromarray(pixels), "PNG")
        draw_pictures([Picture(image, None, [("fox", 0.5)])], tmp_path / f"{k}.png", "title")
        shown.append(np.asarray(Image.open(tmp_path / f"{k}.png").convert("L")))
    assert np.array_equal(*shown)
