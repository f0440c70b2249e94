"""The schema: help, tables of keys, changed keys, and values as typed on a command line."""

import runpy
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from configs.help import PAGES, START, help_text, key_tables, with_tables
from configs.keys import Effect, keys_of
from configs.schema import DataConfig, EvalConfig, TrainConfig
from configs.store import changes, to_dict
from configs.validate import validate
from tests.conftest import ROOT, composed

# Keys that change results by rounding at most; data set and mean image may be moved.
RESUMABLE = {
    *("compile", "data.mean", "data.on_error", "data.root", "device", "log_every", "max_steps"),
    *("act.kernel", "micro_batch", "parallel", "runs", "skip_steps", "timeout", "val_every"),
    *("loader.name", "loader.workers", "loader.prefetch", "loader.device"),
    *("loader.decode", "name"),
    *("checkpoint.every_steps", "checkpoint.keep", "checkpoint.asynchronous"),
}
NOTED = {
    *("precision", "data.mean", "skip_steps", "schedule.rule", "schedule.rates"),
    *("schedule.patience", "schedule.min_improvement", "schedule.switch_epochs"),
}
SHOWN_BESIDE = {"seed", "data.num_classes"}


@pytest.mark.parametrize("kind", [TrainConfig, EvalConfig])
def test_every_key_has_a_one_line_description_and_a_valid_default(kind: type) -> None:
    for name, key in keys_of(kind).items():
        assert 0 < len(key.text) <= 90, name
        assert not key.choices or key.default in (None, "???", *key.choices), name


def test_keys_that_a_resumed_run_may_change_and_that_tables_note() -> None:
    keys = keys_of(TrainConfig)
    assert {name for name, key in keys.items() if key.resumable} == RESUMABLE
    assert {name for name, key in keys.items() if key.effect is Effect.NOTED} == NOTED
    unseen = {name for name, key in keys.items() if key.effect is Effect.NONE}
    assert unseen == (RESUMABLE - NOTED) | SHOWN_BESIDE


def test_changes_lists_the_keys_whose_values_differ() -> None:
    old = to_dict(composed("data=synthetic"))
    new = to_dict(composed("data=synthetic", "act=relu", "loader.workers=3", "seed=1"))
    changed = changes(old, new | {"gone": 1})
    assert [change.key for change in changed] == [
        *("act.learned", "act.name", "act.slope", "gone", "loader.workers", "name", "seed")
    ]
    assert str(changed[1]) == "act.name: prelu -> relu"
    assert [change.key for change in changed if change.resumable] == ["loader.workers", "name"]
    assert changed[3].effect is Effect.OTHER


def test_derived_values() -> None:
    assert DataConfig(scale=300).scale_range == (300, 300)
    assert DataConfig(scale=[256, 512]).scale_range == (256, 512)
    assert [DataConfig(crop=crop).validation_scale for crop in (224, 112, 64)] == [256, 128, 73]
    assert DataConfig(crop=224, val_scale=384).validation_scale == 384
    config = composed("name=mine", "runs=/runs")
    assert config.folder == Path("/runs/mine")
    assert [config.images_at_once(n) for n in (1, 8)] == [128, 16]
    assert EvalConfig(checkpoint="a.pt").checkpoints == ["a.pt"]


@pytest.mark.parametrize(("program", "kind"), [("train.py", TrainConfig), ("eval.py", EvalConfig)])
def test_help_shows_every_key_and_needs_no_torch(
    program: str, kind: type, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it would fail
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / program), run_name="__main__")
    assert not left.value.code
    text = capsys.readouterr().out
    assert text == help_text(kind) + "\n"
    for name in keys_of(kind):
        assert f" {name.removesuffix('.name')}=" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("page", PAGES)
def test_tables_in_docs_match_the_schema(page: str) -> None:
    """After a change of the schema, `python -m configs.help` rewrites them."""
    text = (ROOT / page).read_text()
    assert text == with_tables(text, PAGES[page])
    page_with_markers = f"before\n{START}old\n<!-- /keys -->\nafter"
    assert key_tables(PAGES[page]) in with_tables(page_with_markers, PAGES[page])


@pytest.mark.parametrize(
    "text",
    [
        *("2026_11_25", "1e3", "0x1F", "true", "null", "1:30", "a,b", "[a]", "{a: b}", "x y (1)"),
        *("a=b", "it's", "a#b", "a\\", "a\\'b", "größe", "漢字", "", "a/b", "choice(1,2)", "$HOME"),
    ],
)
def test_text_is_read_as_typed(text: str) -> None:
    assert composed(f"name={text}").name == text
    assert composed(f"data.root={text}", "data=folder").data.root == text
    config = composed(f"checkpoint=/x/{text}", f"images={text or 'a'}", program="eval")
    assert config.checkpoint == f"/x/{text}"
    expected = {"null": None, "[a]": ["a"], "": "a"}
    assert config.images == expected.get(text, text)


def test_lists_of_files_quotes_and_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for images, expected in (
        ("[photo (1).jpg, 1e3,it's]", ["photo (1).jpg", "1e3", "it's"]),
        ("['a,b.jpg',\"c d.jpg\"]", ["a,b.jpg", "c d.jpg"]),
        ("'1e3'", "1e3"),
        ("~/x y", "/home/me/x y"),
        ("[~/x,y]", ["/home/me/x", "y"]),
    ):
        assert composed("checkpoint=a.pt", f"images={images}", program="eval").images == expected
    assert composed("runs=~/runs", "name=a").folder == Path("/home/me/runs/a")
    assert composed("name=${act.name}-1e3").name == "prelu-1e3"
    with pytest.raises(UserError, match=r"cannot read scales=\[256,384 .*quote lists"):
        composed("checkpoint=a.pt", "scales=[256,384", program="eval")


@pytest.mark.parametrize("override", ["name=", "name=..", "name=a/b", "runs=", "data.root="])
def test_names_that_are_not_one_folder_are_refused(override: str) -> None:
    with pytest.raises(UserError, match=f"^{override}"):
        validate(composed("data=folder", "data.root=/x", override), 1)
