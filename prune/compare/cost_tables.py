"""Tables of `excise compare` by one measure: every plan against random plans."""

from prune.compare.costs import costs, task_cost_of, task_of
from prune.compare.result import ComparisonResult, TaskJson
from prune.tables import Table, plain, probability, signed, spread, verdict
from validate.results import EvidenceJson, PlanCostJson

HEAD = (
    "random (mean ± sd)",
    "reversed",
    "p good, bad",
    "after Holm",
    "detectable",
    "verdict",
)


def cost_table(result: ComparisonResult, measure: str) -> Table:
    """The verdicts by one measure. Of a task the value is what it reports, the cost what is lost of it."""
    task = task_of(result, measure)
    pairs = list(costs(result, measure))
    unequal = any(cost["equal_counts"] for _, cost in pairs)
    if task is None:
        title = f"loss: {plain(result['loss'])} nats per token unpruned"
        values = ["ΔCE [95 %]"]
    else:
        title = f"{measure}: {task['metric']} over {task['items']} items, {plain(task['full'], 3)} unpruned"
        values = [task["metric"], "lost [95 %]"]
    head = ["scope", "fraction", "criterion", *values, *HEAD]
    if unequal:
        head.append("against equal counts (after Holm)")
    return Table(title, head, [_row(plan, cost, task, unequal) for plan, cost in pairs])


def _row(plan: EvidenceJson, cost: PlanCostJson, task: TaskJson | None, unequal: bool) -> list[str]:
    low, high = cost["delta_interval"]
    row = [plan["scope"], f"{plan['fraction']:g}", plan["criterion"]]
    if task is not None:
        row.append(plain(task_cost_of(plan, task["name"])["value"], 3))
    row += [
        f"{signed(cost['delta'])} [{signed(low, 3)}, {signed(high, 3)}]",
        spread(cost["random"]["mean"], cost["random"]["sd"]),
        signed(cost["reversed_delta"]),
        f"{probability(cost['p'])}, {probability(cost['p_worse'])}",
        f"{probability(cost['p_corrected'])}, {probability(cost['p_worse_corrected'])}",
        "none" if cost["smallest_detectable"] is None else plain(cost["smallest_detectable"], 3),
        verdict(cost, plan["domains"] if task is None else ()),
    ]
    if unequal:
        row.append(_against_equal_counts(cost))
    return row


def _against_equal_counts(cost: PlanCostJson) -> str:
    equal = cost["equal_counts"]
    if not equal:
        return "counts are equal"
    p, p_worse = probability(equal["p_corrected"]), probability(equal["p_worse_corrected"])
    return f"{equal['verdict']} ({p}, {p_worse})"
