"""Several runs side by side: their curves in one picture, and the keys in which they differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from common.errors import UserError, refusing
from common.files import read_json_lines
from common.style import save_figure, series, styled
from configs.store import FlatConfig, flatten, read_yaml

Points = list[tuple[int, float]]  # step, value

# Keys that are not compared: they name the run, or folders.
_IGNORED_KEYS = ("name", "runs", "data.root")


@dataclass(frozen=True)
class RunCurves:
    """The curves and the configuration of a run."""

    label: str
    config: FlatConfig
    loss: Points
    error: Points  # validation, top-1, percent
    rate: Points  # learning rate


def compare(folders: Sequence[Path], out: Path) -> str:
    """Draw the runs' curves to `out` (.png, and .svg beside it); returns a table of their keys.

    Raises UserError for a folder that is not a run, and if the figure cannot be written.
    """
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise UserError("compare needs the folders of two or more different runs")
    if out.suffix != ".png":
        raise UserError(f"--out {out} must end in .png")
    labels = [folder.resolve().name for folder in folders]
    if len(set(labels)) < len(labels):
        labels = [str(folder) for folder in folders]
    runs = [read_curves(folder, label) for folder, label in zip(folders, labels, strict=True)]
    with styled():
        save_figure(draw(runs), out.parent, out.stem)
    return differences(runs)


def read_curves(folder: Path, label: str) -> RunCurves:
    """The curves of a run; raises UserError if the folder holds none."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no run of train.py: it has no config.yaml")
    # Damaged files raise many kinds of exceptions.
    with refusing(Exception, what=f"{folder} cannot be read as a run"):
        lines = read_json_lines(folder / "metrics.jsonl")
        train = [line for line in lines if line["kind"] == "train"]
        curves = RunCurves(
            label=label,
            config=flatten(read_yaml(folder / "config.yaml")),
            loss=[(line["step"], line["loss"]) for line in train],
            error=[(line["step"], line["top1_error"]) for line in lines if line["kind"] == "val"],
            rate=[(line["step"], line["lr"]) for line in train],
        )
    if not train:
        raise UserError(f"{folder} has no line of training yet in metrics.jsonl")
    return curves


def draw(runs: Sequence[RunCurves]) -> Figure:
    """Training loss, validation error and learning rate, over images if batch sizes differ."""
    batch_size = runs[0].config["batch_size"]
    by_images = any(run.config["batch_size"] != batch_size for run in runs)
    figure = Figure(figsize=(13.8, 4.6 + 0.25 * len(runs)))
    panels = figure.subplots(1, 3)
    for index, run in enumerate(runs):
        unit = run.config["batch_size"] if by_images else 1
        for axes, points in zip(panels, (run.loss, run.error, run.rate), strict=True):
            style = series(index)
            if len(points) > 40 and axes is not panels[1]:  # markers would hide the line
                style |= {"marker": "", "linewidth": 1.1}
            x = [step * unit for step, _ in points]
            axes.plot(x, [value for _, value in points], label=run.label, **style)
    panels[0].set_title("training loss")
    panels[1].set_title("validation, top-1 error, %")
    panels[2].set_title("learning rate")
    panels[2].set_yscale("log")
    for axes in panels:
        axes.set_xlabel("images" if by_images else f"steps (batches of {batch_size})")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center")
    return figure


def differences(runs: Sequence[RunCurves]) -> str:
    """A table of the keys whose values differ: a line for each key, a column for each run."""
    keys = sorted(set().union(*(run.config for run in runs)) - set(_IGNORED_KEYS))
    rows = [["", *(run.label for run in runs)]]
    for key in keys:
        values = [run.config.get(key, "no such key") for run in runs]
        if any(value != values[0] for value in values):
            rows.append([key, *map(str, values)])
    if len(rows) == 1:
        return "the runs differ in no key"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [map(str.ljust, row, widths) for row in rows]
    return "\n".join("  ".join(cells).rstrip() for cells in padded)
