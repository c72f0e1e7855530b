"""Curves of progressive removal as tables: mean ΔCE by the number of removed experts, a table per layer."""

from collections.abc import Iterator

from prune.audit.result import ProgressiveJson
from prune.tables import Table, plain, signed
from validate.results import CurveJson
from validate.verdict import marked_point


def curve_tables(progressive: ProgressiveJson, intervals: bool = False) -> Iterator[Table]:
    """A table per layer, a row per order of removal.

    Args:
        intervals: show the 95 % interval of every point, where there is room for it.
    """
    for layer in dict.fromkeys(curve["layer"] for curve in progressive["curves"]):
        curves = [curve for curve in progressive["curves"] if curve["layer"] == layer]
        yield _layer_table(layer, curves, progressive["cliff"], intervals)


def _layer_table(layer: int, curves: list[CurveJson], cliff: float, intervals: bool) -> Table:
    most = max(len(curve["mean"]) for curve in curves)
    title = (
        f"Progressive removal, layer {layer}: mean ΔCE with so many experts removed; "
        "* better, ! worse than 95 % of random orders"
    )
    head = ["order", *(str(number) for number in range(1, most + 1)), f"cliff (> {cliff})"]
    rows = []
    for curve in curves:
        points = [_point(curve, place, intervals) for place in range(len(curve["mean"]))]
        missing = [""] * (most - len(points))
        rows.append([curve["order"], *points, *missing, str(curve["cliff"] or "none")])
    return Table(title, head, rows)


def _point(curve: CurveJson, place: int, intervals: bool) -> str:
    """Mean, its mark, and its spread over random orders or its interval over documents."""
    around = ""
    if curve["sd"]:
        around = f" ± {plain(curve['sd'][place])}"
    elif intervals:
        low, high = curve["interval"][place]
        around = f" [{signed(low)}, {signed(high)}]"
    mark = marked_point(curve["p"][place], curve["p_worse"][place])
    return f"{signed(curve['mean'][place])}{mark}{around}"
