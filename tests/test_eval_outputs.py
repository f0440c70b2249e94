"""What eval.py writes replaces nothing but its own earlier results; what its figure shows."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from configs.schema import EvalConfig
from configs.validate import validate_eval
from evaluation.pictures import Picture, draw_pictures
from evaluation.result import refuse_overwriting, result_path
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
def test_files_of_others_are_not_replaced(tmp_path: Path, options: list[str], there: str) -> None:
    out = tmp_path / "cat.json"
    config = config_of(*options, f"out={out}")
    validate_eval(config)
    refuse_overwriting(config, out)
    for content in ("[1, 2]", "{}", "not JSON"):
        (tmp_path / there).write_text(content)
        with pytest.raises(UserError, match=f"{there} is there already"):
            refuse_overwriting(config, out)


@pytest.mark.parametrize(
    ("options", "beside"), [(["images=dog.png"], ".png"), (["split=test"], ".txt"), ([], ".png")]
)
def test_earlier_results_are_replaced(tmp_path: Path, options: list[str], beside: str) -> None:
    out = tmp_path / "a.json"
    config = config_of(*options, f"out={out}")
    earlier = {"images": config.images, "split": config.split}
    out.write_text(json.dumps({"config": earlier}))
    out.with_suffix(beside).write_bytes(b"written with it")
    refuse_overwriting(config, out)
    if options:  # of another kind, it wrote nothing beside it
        out.write_text(json.dumps({"config": {"images": None, "split": "val"}}))
        with pytest.raises(UserError, match=f"a{beside} is there already"):
            refuse_overwriting(config, out)


def test_names_of_results() -> None:
    with pytest.raises(UserError, match=r"out=a.png must end in .json"):
        validate_eval(config_of("images=b.png", "out=a.png"))
    names = [
        result_path(config_of(f"images={images}"), [Path("runs/x/checkpoints/last.pt")]).name
        for images in ("cat.png", "[dog.png,cat.png]", "holidays/")
    ]
    starts = "result-last-centre-pictures-"
    assert names == [f"{starts}{name}.json" for name in ("cat", "dog", "holidays")]


def test_the_figure_shows_what_the_network_sees(tmp_path: Path) -> None:
    """Of 16 bits the high byte, which a plain conversion clips to white."""
    grey = picture(60, 80)[..., 0]
    shown = []
    for k, pixels in enumerate((grey, (grey.astype(np.uint16) << 8) + 77)):
        image = encoded(Image.fromarray(pixels), "PNG")
        draw_pictures([Picture(image, None, [("fox", 0.5)])], tmp_path / f"{k}.png", "title")
        shown.append(np.asarray(Image.open(tmp_path / f"{k}.png").convert("L")))
    assert np.array_equal(*shown)
