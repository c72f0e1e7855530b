"""Tables of `excise compare` by one measure: criteria against each other, and global against layer counts."""

from collections.abc import Iterator, Sequence

from prune.compare.costs import ScopeAndFraction, budget_in_words, budget_of, budgets, costs
from prune.compare.result import ComparisonResult
from prune.tables import Table, probability, signed
from validate.results import DifferenceJson

SIGNS = "< the row costs less, > more, · no significant difference, = same plan"
MIRRORED = {"<": ">", ">": "<", "·": "·", "=": "="}


def difference_tables(result: ComparisonResult, measure: str) -> Iterator[Table]:
    """A table per budget: which criteria differ, best first."""
    for budget in budgets(result):
        names = [plan["criterion"] for plan, _ in costs(result, measure) if budget_of(plan) == budget]
        if len(names) < 2:
            continue
        marks = _marks(_pairs(result, measure, budget))
        rows = []
        for number, row in enumerate(names, 1):
            rows.append([f"{number} {row}", *(marks.get((row, column), "") for column in names)])
        head = ["criterion", *(str(number) for number in range(1, len(names) + 1))]
        yield Table(f"Which differ by {measure}, {budget_in_words(*budget)}: {SIGNS}", head, rows)


def _pairs(result: ComparisonResult, measure: str, budget: ScopeAndFraction) -> list[DifferenceJson]:
    return [
        pair
        for pair in result["pairs"]
        if (pair["name"], pair["scope"], pair["fraction"]) == (measure, *budget)
    ]


def _marks(pairs: Sequence[DifferenceJson]) -> dict[tuple[str, str], str]:
    """(row, column) -> sign, both ways round."""
    marks = {}
    for pair in pairs:
        mark = _mark(pair)
        marks[pair["first"], pair["second"]] = mark
        marks[pair["second"], pair["first"]] = MIRRORED[mark]
    return marks


def _mark(pair: DifferenceJson) -> str:
    if pair["differ"]:
        return "<" if (pair["difference"] or 0.0) < 0 else ">"
    return "=" if pair["same_plan"] else "·"


def scope_tables(result: ComparisonResult, measure: str) -> Iterator[Table]:
    """Unequal against equal counts of the same total, where both were compared."""
    rows = [_scope_row(pair) for pair in result["scopes"] if pair["name"] == measure]
    if rows:
        title = f"Scope global − scope layer, cost by {measure}: do unequal counts per layer pay?"
        head = ("criterion", "fraction", "difference [95 %]", "p (Holm)", "verdict")
        yield Table(title, head, rows)


def _scope_row(pair: DifferenceJson) -> list[str]:
    low, high = signed(pair["low"]), signed(pair["high"])
    return [
        pair["first"],
        f"{pair['fraction']:g}",
        f"{signed(pair['difference'])} [{low}, {high}]",
        probability(pair["p_corrected"]),
        _scope_verdict(pair),
    ]


def _scope_verdict(pair: DifferenceJson) -> str:
    if pair["same_plan"]:
        return "same plan"
    if not pair["differ"]:
        return "no significant difference"
    return "global better" if (pair["difference"] or 0.0) < 0 else "layer better"
