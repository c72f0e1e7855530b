"""report.md: the table, the rule, the evidence and the formulas of one run."""

from collections.abc import Iterator
from typing import Any

from experts.units import human
from prune.recipe.schema import Recipe
from prune.tables import markdown_table, plain, probability, signed, spread, verdict

P_RULES = {
    "counted": "p = (1 + #random plans at least as good) / (R + 1).",
    "normal": "p: one-sided t of (plan − mean random) / (sd·√(1 + 1/R)), R − 1 degrees of freedom.",
}
HEAD = (
    "criterion",
    "scope",
    "kept",
    "size before → after",
    "ΔCE",
    "ΔCE random (mean ± sd)",
    "ΔCE reversed",
    "p",
    "verdict",
)


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per tested plan, as text; the first one is the plan that was written."""
    return [
        (
            plan["criterion"],
            plan["scope"],
            f"{plan['kept']}/{plan['of']}",
            sizes(result, plan),
            signed(plan["delta"]),
            spread(plan["random"]["mean"], plan["random"]["sd"]),
            signed(plan["reversed_delta"]),
            probability(plan["p"]),
            verdict(plan),
        )
        for plan in result["plans"]
    ]


def sizes(result: dict[str, Any], plan: dict[str, Any]) -> str:
    """Bytes of all tensors before and after."""
    return f"{human(result['size']['before'])} → {human(plan['size'])}"


TASK_HEAD = (
    "task",
    "criterion",
    "scope",
    "unpruned",
    "pruned",
    "random (mean ± sd)",
    "reversed",
    "p",
    "verdict",
)


def task_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per task and tested plan: the metric itself, larger is better."""
    found = []
    for plan in result["plans"]:
        for task in plan["tasks"]:
            full, random = task["full"], task["random"]
            around = f"{plain(full - random['mean'], 3)} ± {plain(random['sd'], 3)}"
            reverse = plain(full - task["reversed_delta"], 3)
            values = (plain(full, 3), plain(task["value"], 3), around, reverse)
            found.append(
                (
                    f"{task['name']} ({task['metric']})",
                    plan["criterion"],
                    plan["scope"],
                    *values,
                    probability(task["p"]),
                    verdict(task),
                )
            )
    return sorted(found, key=lambda row: row[0])


def table(result: dict[str, Any]) -> str:
    """The tables in Markdown: the loss, and the tasks if there are some."""
    tasks = task_rows(result)
    return markdown_table(HEAD, rows(result)) + (f"\n\n{markdown_table(TASK_HEAD, tasks)}" if tasks else "")


def evidence(result: dict[str, Any]) -> str:
    """What each verdict rests on, a paragraph per plan and measure."""
    return "\n".join(line for plan in result["plans"] for line in _evidence(plan))


def _evidence(plan: dict[str, Any]) -> Iterator[str]:
    head = f"- **{plan['criterion']}**, scope {plan['scope']}, score = {plan['formula']}"
    yield f"{head}: {_against(plan, 'nats', 'documents')} Kept per layer: {_counts(plan['kept_per_layer'])}."
    if plan["equal_counts"]:
        equal = {**plan, **plan["equal_counts"]}
        yield f"{head}, against random plans of the same total with equal counts per layer: {_against(equal, 'nats', 'documents')}"
    for task in plan["tasks"]:
        yield f"{head}, by {task['name']} ({task['metric']}): {_against(task, 'of the items', 'items')}"


def _against(cost: dict[str, Any], unit: str, clusters: str) -> str:
    low, high = map(signed, cost["interval"])
    note = f" ({cost['interval_note']})" if cost["interval_note"] else ""
    return (
        f"{cost['verdict']}. Advantage over the mean of {len(cost['random']['values'])} random plans "
        f"{signed(cost['random']['mean'] - cost['delta'])} {unit}, "
        f"95 % interval [{low}, {high}] over {cost['clusters']} {clusters}{note}; "
        f"effect {signed(cost['effect'], 2)} sd of the random plans; p = {probability(cost['p'], 4)} (as good by chance), "
        f"{probability(cost['p_worse'], 4)} (as bad by chance). Smallest difference this test finds with 80 % power: "
        f"{signed(cost['smallest_detectable'])} {unit}."
    )


def _counts(counts: dict[str, int]) -> str:
    different = set(counts.values())
    return (
        f"{different.pop()} in every layer"
        if len(different) == 1
        else ", ".join(f"layer {layer}: {n}" for layer, n in counts.items())
    )


def markdown(recipe: Recipe, result: dict[str, Any]) -> str:
    """The whole report."""
    text = result["text"]
    checks = "\n".join(f"- passed: {check['name']} ({check['evidence']})" for check in result["checks"])
    reloaded = "\n- passed: 6 restricted = reloaded (logits bit-equal)" if result["checkpoint"] else ""
    return f"""# {recipe.model}: {recipe.criteria[0]} against chance

{table(result)}

ΔCE: rise of the held-out cross-entropy over the unpruned model's {plain(result["loss"])}, in nats per token;
smaller is better.
Every plan is measured by really removing the experts (restricted = cut = reloaded, bit-equal).

## Rule
{result["rule"]}

Random plans keep as many experts in every layer as the criterion's plan{_protection(result)}.
{P_RULES[result["chance"]]} Interval: percentile bootstrap that resamples documents (of tasks: items).

## Evidence
{evidence(result)}

Raw rows, one per plan and window: `losses.csv`; of tasks, per plan and item: `items.csv`.

{_agreement(result)}## Text
- calibration: {_describe(text["calibration"])}
- validation: {_describe(text["validation"])}
- validation documents that calibration has other windows of: {result["shared_documents"]}
- experts that no calibration token reached (no score, pruned first): {result["without_data"]}

## Checks of the instrument
{checks}{reloaded}

Model {result["model"]["name"]}, fingerprint {result["model"]["fingerprint"]}.
Checkpoint: {result["checkpoint"] or "none written: the recipe stops on this verdict"}.
"""


def _agreement(result: dict[str, Any]) -> str:
    """Spearman with the measured removals, if there were any."""
    if not result["agreement"]:
        return ""
    lines = [
        f"- {criterion}: {', '.join(signed(value, 2) for value in layers)}"
        for criterion, layers in result["agreement"].items()
    ]
    return (
        "## Rank agreement\nSpearman with the measured removals (causal_removal), layer by layer:\n"
        + "\n".join(lines)
        + "\n\n"
    )


def _protection(result: dict[str, Any]) -> str:
    return (
        f", and keep the {result['protected']} protected super experts as it does"
        if result["protected"]
        else ""
    )


def _describe(text: dict[str, Any]) -> str:
    domains = ", ".join(text["domains"])
    return f"{text['windows']} windows of {text['length']} tokens from {text['documents']} documents ({domains}), hash {text['hash']}"
