"""What `excise compare` says: the same tables for the terminal and for comparison.md. Overlap and stability come before any score."""

from collections.abc import Iterator
from typing import Any

from prune.tables import markdown_table, percent, plain, probability, removed, signed, spread, verdict

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # title, head, rows


def tables(result: dict[str, Any]) -> Iterator[Table]:
    """Title, head and rows of every table, in reading order."""
    yield from _overlaps(result)
    if result["agreement"]["reference"]:
        head = ("criterion", "mean", *(f"layer {layer}" for layer in result["agreement"]["layers"]))
        title = (
            f"Rank agreement: Spearman with {result['agreement']['reference']} over the experts of a layer"
        )
        yield title, head, agreement_rows(result["agreement"])
    for name in _measures(result):
        yield _costs(result, name)
        yield from _differences(result, name)
        yield from _scopes(result, name)


def _measures(result: dict[str, Any]) -> list[str]:
    return ["loss", *(task["name"] for task in result["tasks"])]


def _budget(row: dict[str, Any]) -> str:
    return f"scope {row['scope']}, {removed(row['fraction'])} pruned"


def _overlaps(result: dict[str, Any]) -> Iterator[Table]:
    stable = {(row["criterion"], row["scope"], row["fraction"]): row for row in result["stability"]}
    for block in result["overlap"]:
        names = block["criteria"]
        shared = result["windows_shared_by_seeds"]
        same = "" if shared is None else f", {percent(shared)} same text"
        others = f"other seeds{same} (smallest)"
        head = ("criterion", *(str(number) for number in range(1, len(names) + 1)), others)
        lines = []
        for number, (name, values) in enumerate(zip(names, block["matrix"], strict=True), 1):
            seeds = stable[name, block["scope"], block["fraction"]]
            again = (
                f"{signed(seeds['mean'], 2)} ({signed(seeds['smallest'], 2)})"
                if seeds["mean"] is not None
                else "not repeated"
            )
            lines.append((f"{number} {name}", *(signed(value, 2) for value in values), again))
        yield (
            f"Overlap of plans beyond chance, {_budget(block)} (1 = as alike as their counts allow, 0 = as random plans)",
            head,
            lines,
        )


def agreement_rows(agreement: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per criterion: mean Spearman over the layers that have one, then layer by layer."""
    means: dict[str, float | None] = {}
    for criterion, layers in agreement["spearman"].items():
        there = [value for value in layers if value is not None]
        means[criterion] = sum(there) / len(there) if there else None
    ordered = sorted(means.items(), key=lambda item: -2.0 if item[1] is None else item[1], reverse=True)
    return [
        (name, *(signed(value, 2) for value in (mean, *agreement["spearman"][name])))
        for name, mean in ordered
    ]


def costs_of(result: dict[str, Any], name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(plan, its cost by this measure), budget by budget, best first."""
    pairs = [
        (plan, plan if name == "loss" else next(task for task in plan["tasks"] if task["name"] == name))
        for plan in result["plans"]
    ]
    budgets = list(dict.fromkeys((plan["scope"], plan["fraction"]) for plan in result["plans"]))
    return sorted(
        pairs, key=lambda pair: (budgets.index((pair[0]["scope"], pair[0]["fraction"])), pair[1]["delta"])
    )


def _costs(result: dict[str, Any], name: str) -> Table:
    """The verdicts by one measure. Of a task, the value is what it reports (accuracy) and the cost is what is lost of it."""
    task = next((task for task in result["tasks"] if task["name"] == name), None)
    unequal = any(cost["equal_counts"] for _, cost in costs_of(result, name))
    if task:
        title = f"{name}: {task['metric']} over {task['items']} items, {plain(task['full'], 3)} unpruned"
        values: tuple[str, ...] = (task["metric"], "lost [95 %]")
    else:
        title, values = f"loss: {plain(result['loss'])} nats per token unpruned", ("ΔCE [95 %]",)
    head = (
        "scope",
        "fraction",
        "criterion",
        *values,
        "random (mean ± sd)",
        "reversed",
        "p good, bad",
        "after Holm",
        "detectable",
        "verdict",
    )
    lines = []
    for plan, cost in costs_of(result, name):
        low, high = cost["delta_interval"]
        lines.append(
            (
                plan["scope"],
                f"{plan['fraction']:g}",
                plan["criterion"],
                *((plain(cost["value"], 3),) if task else ()),
                f"{signed(cost['delta'])} [{signed(low, 3)}, {signed(high, 3)}]",
                spread(cost["random"]["mean"], cost["random"]["sd"]),
                signed(cost["reversed_delta"]),
                f"{probability(cost['p'])}, {probability(cost['p_worse'])}",
                f"{probability(cost['p_corrected'])}, {probability(cost['p_worse_corrected'])}",
                "none" if cost["smallest_detectable"] is None else plain(cost["smallest_detectable"], 3),
                verdict(cost),
                *((_equal(cost),) if unequal else ()),
            )
        )
    return title, (*head, *(("against equal counts (after Holm)",) if unequal else ())), lines


def _equal(cost: dict[str, Any]) -> str:
    equal = cost["equal_counts"]
    if not equal:
        return "counts are equal"
    return (
        f"{equal['verdict']} ({probability(equal['p_corrected'])}, {probability(equal['p_worse_corrected'])})"
    )


def _differences(result: dict[str, Any], name: str) -> Iterator[Table]:
    """Which pairs differ: `<` the row's criterion costs significantly less, `>` more, `·` not told apart, `=` same plan."""
    ordered = costs_of(result, name)
    for scope, fraction in dict.fromkeys((plan["scope"], plan["fraction"]) for plan, _ in ordered):
        names = [
            plan["criterion"] for plan, _ in ordered if (plan["scope"], plan["fraction"]) == (scope, fraction)
        ]
        marks: dict[tuple[str, str], str] = {}
        for pair in result["pairs"]:
            if (pair["name"], pair["scope"], pair["fraction"]) == (name, scope, fraction):
                first, second = pair["first"], pair["second"]
                lower = "<" if pair["difference"] < 0 else ">"
                mark = lower if pair["differ"] else "=" if pair["same_plan"] else "·"
                marks[first, second], marks[second, first] = mark, mark.translate(str.maketrans("<>", "><"))
        rows = [
            (f"{n} {row}", *(marks.get((row, column), "") for column in names))
            for n, row in enumerate(names, 1)
        ]
        signs = "< the row costs less, > more, · not told apart, = same plan"
        title = f"Which differ by {name}, {_budget({'scope': scope, 'fraction': fraction})}: {signs}"
        if len(names) > 1:
            yield title, ("criterion", *(str(n) for n in range(1, len(names) + 1))), rows


def _scopes(result: dict[str, Any], name: str) -> Iterator[Table]:
    """Unequal against equal counts of the same total."""
    rows: list[tuple[str, ...]] = [
        (
            one["first"],
            f"{one['fraction']:g}",
            f"{signed(one['difference'])} [{signed(one['low'])}, {signed(one['high'])}]",
            probability(one["p_corrected"]),
            "same plan"
            if one["same_plan"]
            else "not told apart"
            if not one["differ"]
            else "global better"
            if one["difference"] < 0
            else "layer better",
        )
        for one in result["scopes"]
        if one["name"] == name
    ]
    if rows:
        title = f"Scope global − scope layer, cost by {name}: do unequal counts per layer pay?"
        yield title, ("criterion", "fraction", "difference [95 %]", "p (Holm)", "verdict"), rows


def markdown(result: dict[str, Any]) -> str:
    """The whole report."""
    parts = [f"# {result['model']['name']}: criteria head to head\n"]
    for title, head, lines in tables(result):
        parts.append(f"## {title}\n\n{markdown_table(head, lines)}\n")
    checks = "\n".join(f"- passed: {check['name']} ({check['evidence']})" for check in result["checks"])
    notes = "".join(f"- {note}\n" for note in result["notes"])
    parts.append(f"## Rules\n- Verdict. {result['rule']}\n- Pairs. {result['pair_rule']}\n{notes}")
    parts.append(f"## How it was computed\n{methods(result)}\n")
    parts.append("## Evidence\n" + "\n".join(_evidence(result)) + "\n")
    parts.append(f"## Checks of the instrument\n{checks}\n")
    return "\n".join(parts)


def methods(result: dict[str, Any]) -> str:
    """Formulas of every number, and where its raw rows are."""
    return f"""\
- Cost of a plan: mean over rows of (value under the plan − value of the unpruned model). Rows are windows weighted by their tokens
  (`losses.csv`) or items (`items.csv`), found by the plans' `digest` in `comparison.json`.
- Intervals: percentile bootstrap, 9,999 resamples of whole documents (of tasks: items), seed {result["seed"]} (scipy.stats.bootstrap).
- p, counted: (1 + #random plans at least as good) / (R + 1). p, normal: one-sided t of (plan − mean random) / (sd·√(1 + 1/R)), R − 1
  degrees of freedom; `normality_p` is Shapiro-Wilk's. Holm over criteria × budgets, for each measure and null by itself.
- Pairs: sign flips of whole documents (scipy.stats.permutation_test), of items answered right or wrong exact McNemar (statsmodels).
- Overlap: (Σ|A∩B| − c) / (Σ min(|A|, |B|) − c), c = Σ|A|·|B| / E over layers. Stability: the same between calibration seeds."""


def _evidence(result: dict[str, Any]) -> Iterator[str]:
    """What each verdict rests on, a line per plan and measure."""
    for name in _measures(result):
        for plan, cost in costs_of(result, name):
            low, high = (signed(value) for value in cost["interval"])
            note = f" ({cost['interval_note']})" if cost["interval_note"] else ""
            p, worse, p_holm, worse_holm = (
                probability(cost[key]) for key in ("p", "p_worse", "p_corrected", "p_worse_corrected")
            )
            yield (
                f"- **{plan['criterion']}**, {_budget(plan)}, by {name}; score = {plan['formula']}: {cost['verdict']}. Advantage over the "
                f"mean of {len(cost['random']['values'])} random plans [{low}, {high}] (95 %, {cost['clusters']} clusters{note}), effect "
                f"{signed(cost['effect'], 2)} sd, p as good {p}, as bad {worse} (Holm {p_holm}, {worse_holm}), Shapiro-Wilk p of the "
                f"random plans {probability(cost['random']['normality_p'])}; smallest difference found with "
                f"80 % power at the first step of Holm: "
                f"{signed(cost['smallest_detectable'])}."
            )
