"""Rows of refitted plans as Markdown: a table for every model, seed, fraction and scope."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from validate.statistics import Correction, corrected, permutation_p

Row = dict[str, Any]
TABLE = ("model", "seed", "fraction", "scope")
RANDOM = "random "


def tables(rows: Sequence[Row]) -> list[str]:
    """One table for every model, seed, fraction and scope; losses of the unpruned models first."""
    lost = [row for row in rows if "loss" in row]
    found = [_losses(row) for row in lost]
    measured = sorted((row for row in rows if "loss" not in row), key=_table)
    return found + [_of(key, list(group)) for key, group in groupby(measured, key=_table)]


def _table(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in TABLE)


def _losses(row: Row) -> str:
    losses = ", ".join(f"{name} {value:.3f}" for name, value in row["loss"].items())
    return f"{Path(row['model']).name}, unpruned: {losses} nats per token."


def _of(key: tuple[Any, ...], rows: list[Row]) -> str:
    """Plans first, with their random plans under them."""
    model, seed, fraction, scope = key
    domains = list(rows[0]["before"])
    named = [row for row in rows if not row["plan"].startswith(RANDOM)]
    holm = _holm(named, rows)
    head = ["plan", "chosen on", "refitted on", *domains, "p before", "p after", "Holm"]
    body = [_line(row, rows, domains, holm[id(row)]) for row in named]
    body += [_random_line(group, domains) for group in _random_groups(rows)]
    title = f"{Path(model).name}, {fraction:.0%} removed, scope {scope}, seed {seed}"
    return "\n".join([f"**{title}**", "", *_markdown(head, body)])


def _markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    rule = ["---"] * len(head)
    return [f"| {' | '.join(cells)} |" for cells in [head, rule, *body]]


def _line(row: Row, rows: list[Row], domains: list[str], holm: float) -> list[str]:
    last = _when(row)
    cells = [_cell(row[last][name], row["before"][name] if last == "after" else None) for name in domains]
    p = [chance(row, rows, when) for when in ("before", "after")]
    shown = [_p(one) for one in [*p, holm]]
    return [f"`{row['plan']}`", row["chosen"], row["refitted"] or "–", *cells, *shown]


def _cell(last: Sequence[float], before: Sequence[float] | None) -> str:
    value, low, high = last
    first = f"{before[0]:.3f} → " if before else ""
    return f"{first}**{value:.3f}** [{low:.3f}, {high:.3f}]"


def _p(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _when(row: Row) -> str:
    return "after" if row["refitted"] else "before"


def peers(row: Row, rows: Iterable[Row], when: str) -> list[Row]:
    """Random plans of the same counts; after a refit those with the same one."""
    counts = ",".join(map(str, row["kept"])) if row["scope"] == "global" else ""
    same = [one for one in rows if one["plan"].startswith(RANDOM) and one["counts"] == counts]
    if when == "after":
        return [one for one in same if one["refitted"] == row["refitted"]]
    return list({one["plan"]: one for one in same}.values())


def chance(row: Row, rows: Iterable[Row], when: str) -> float:
    """How often random plans do as well, over all domains; nan without random plans, or without a refit."""
    null = [other[when]["all"][0] for other in peers(row, rows, when) if when in row]
    return permutation_p(row[when]["all"][0], np.array(null)) if null else float("nan")


def _holm(named: list[Row], rows: list[Row]) -> dict[int, float]:
    """The last p, adjusted over the plans that were chosen and refitted on the same texts."""
    found = {}
    kinds = sorted({(row["chosen"], row["refitted"]) for row in named})
    for kind in kinds:
        family = [row for row in named if (row["chosen"], row["refitted"]) == kind]
        p = [chance(row, rows, _when(row)) for row in family]
        adjusted = corrected(p, Correction.HOLM)
        found.update({id(row): float(one) for row, one in zip(family, adjusted, strict=True)})
    return found


def _random_groups(rows: list[Row]) -> list[list[Row]]:
    drawn = [row for row in rows if row["plan"].startswith(RANDOM)]
    keys = list(dict.fromkeys((row["counts"], row["refitted"]) for row in drawn))
    return [[row for row in drawn if (row["counts"], row["refitted"]) == key] for key in keys]


def _random_line(group: list[Row], domains: list[str]) -> list[str]:
    """Mean ± standard deviation over random plans, before → after."""
    last = _when(group[0])
    cells = []
    for name in domains:
        values = [row[last][name][0] for row in group]
        first = f"{mean(row['before'][name][0] for row in group):.3f} → " if last == "after" else ""
        spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        cells.append(f"{first}**{mean(values):.3f}**{spread}")
    counts = f" of counts {group[0]['counts']}" if group[0]["counts"] else ""
    title = f"{len(group)} random{counts}"
    return [title, "", group[0]["refitted"] or "–", *cells, "–", "–", "–"]
