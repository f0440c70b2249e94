"""Tables of what was learned (Table 1), counted (Table 3), and seen on the way (Figs. 2, 3)."""

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from analysis.report.paper import ARCHITECTURES, SLOPE_EXPERIMENTS, SLOPES, CurveFigure
from analysis.report.runs import Run
from analysis.report.selection import NOT_RUN, Edition, choose
from analysis.report.tables import BLANK, Table, hours_of, number, with_spread
from configs.schema import TrainConfig
from configs.store import compose_config
from models.describe import describe


def slope_table(runs: Sequence[Run]) -> Table:
    """Table 1: learned slopes of the 14-layer model, layer by layer."""
    chosen = [choose(runs, Edition(), experiment) for experiment in SLOPE_EXPERIMENTS]
    kinds = ("channel-shared", "channel-wise, mean")
    head = ["layer"]
    for kind in kinds:
        head += [f"{kind}: paper", "ours", "difference"]
    body, rows = [], []
    for layer, papers in SLOPES.items():
        line = [layer]
        for paper, kind, own in zip(papers, kinds, chosen, strict=True):
            values = [run.slopes[layer]["mean"] for run in own.runs if layer in run.slopes]
            mean = fmean(values) if values else None
            spread = stdev(values) if len(values) > 1 else None
            state = own.state if values or not own.runs else NOT_RUN
            partial = f" ({state})" if state.startswith("partial") else ""
            difference = None if mean is None else mean - paper
            told = state if mean is None else with_spread(mean, spread, 3) + partial
            line += [number(paper, 3), told, BLANK if mean is None else f"{difference:+.3f}"]
            facts = {"paper": paper, "ours": mean, "difference": difference, "spread": spread}
            names = " ".join(run.name for run in own.runs) or None
            seeds = {"seeds": len(values) or None, "state": state, "runs": names}
            rows.append({"layer": layer, "slopes": kind, **facts, **seeds})
        body.append(line)
    title = "Table 1: learned slopes of the 14-layer model"
    return Table("table1", title, "Read from the last checkpoint.", head, body, rows)


def architecture_table() -> Table:
    """Table 3: counted in the networks as they are built."""
    body, rows = [], []
    for name, layers, paper in ARCHITECTURES:
        config = compose_config([f"model={name}"], TrainConfig)
        found = describe(config.model, config.act, config.init, 1000, 224)
        ours = found.multiply_adds / 1e10
        million = found.parameters / 1e6
        counts = [f"{layers}", f"{found.weight_layers}", f"{paper:.2f}", f"{ours:.3f}"]
        body.append([name, *counts, f"{ours - paper:+.3f}", f"{million:.2f}"])
        facts = {"model": name, "paper_weight_layers": layers, "weight_layers": found.weight_layers}
        costs = {"paper_operations_1e10": paper, "multiply_adds": found.multiply_adds}
        rows.append({**facts, **costs, "parameters": found.parameters})
    head = ["model", "weight layers: paper", "ours", "operations, x 1e10: paper", "ours"]
    head += ["difference", "parameters, million"]
    note = (
        "Counted, nothing is trained: multiply-adds of conv and fc layers for one 224 x 224 image."
    )
    return Table("table3", "Table 3: architectures", note, head, body, rows)


def curve_table(figure: CurveFigure, edition: Edition, runs: Sequence[Run], title: str) -> Table:
    """Where the curves of a figure end, and how large the gradients are on the way."""
    head = ["curve", "top-1 error at the end", "lowest", "images", "training loss at the end"]
    head += ["gradient norm of conv1: first", "last", "seeds", "trained", "hours"]
    body, rows = [], []
    for label, experiment in figure.curves:
        chosen = choose(runs, edition, experiment)
        own = [run for run in chosen.runs if run.val and run.train]
        if not own:
            body.append([label, chosen.state, *[BLANK] * (len(head) - 2)])
            rows.append({"curve": label, **_curve_row([], chosen.state)})
            continue
        facts = _curve_row(own, chosen.state)
        partial = f" ({chosen.state})" if chosen.state.startswith("partial") else ""
        body.append(
            [
                label,
                with_spread(facts["top1_error"], facts["top1_spread"]) + partial,
                number(facts["lowest_top1_error"]),
                f"{facts['images']:,.0f}",
                with_spread(facts["loss"], facts["loss_spread"], 3),
                *(_norm(facts[f"conv1_gradient_{when}"]) for when in ("first", "last")),
                ", ".join(str(run.seed) for run in own),
                own[0].length,
                hours_of(own),
            ]
        )
        rows.append({"curve": label, **facts})
    note = f"{edition.note} The paper: {figure.claim}".strip()
    return Table(figure.name + edition.suffix, title, note, head, body, rows)


def _norm(value: float | None) -> str:
    return BLANK if value is None else f"{value:.2g}"


def _curve_row(own: Sequence[Run], state: str) -> dict[str, Any]:
    def over(values: Iterable[float]) -> tuple[float | None, float | None]:
        listed = list(values)
        return (
            fmean(listed) if listed else None,
            stdev(listed) if len(listed) > 1 else None,
        )

    error, error_spread = over(run.val[-1]["top1_error"] for run in own)
    lowest, _ = over(min(line["top1_error"] for line in run.val) for run in own)
    loss, loss_spread = over(run.train[-1][1] for run in own)
    norms = [run.gradients["conv1"] for run in own if run.gradients.get("conv1")]
    return {
        "top1_error": error,
        "top1_spread": error_spread,
        "lowest_top1_error": lowest,
        "images": own[0].val[-1]["images"] if own else None,
        "loss": loss,
        "loss_spread": loss_spread,
        "conv1_gradient_first": over(points[0][1] for points in norms)[0],
        "conv1_gradient_last": over(points[-1][1] for points in norms)[0],
        "seeds": len(own) or None,
        "state": state,
        "runs": " ".join(run.name for run in own) or None,
    }
