"""comparison.csv: a flat row per criterion, budget and measure."""

from prune.compare.costs import LOSS
from prune.compare.result import ComparisonResult
from prune.refit_tables import after_refit
from prune.tables import csv_text
from validate.results import CostJson, EvidenceJson, PlanCostJson

COMPARISON_COLUMNS = (
    "criterion",
    "scope",
    "fraction",
    "state",
    "measure",
    "domain",
    "value",
    "delta",
    "delta_low",
    "delta_high",
    "random_mean",
    "random_sd",
    "reversed_delta",
    "p",
    "p_worse",
    "p_corrected",
    "p_worse_corrected",
    "low",
    "high",
    "verdict",
    "verdict_equal_counts",
    "smallest_detectable",
    "effect",
    "clusters",
    "p_full",
    "ends_alike",
    "stability",
)


def comparison_csv(result: ComparisonResult) -> str:
    """The whole of comparison.csv."""
    return csv_text(COMPARISON_COLUMNS, comparison_rows(result))


def comparison_rows(result: ComparisonResult) -> list[dict[str, object]]:
    """Every plan by the loss, in each domain, then by every task, in the columns of comparison.csv."""
    stability = {
        (row["criterion"], row["scope"], row["fraction"]): row["mean"] for row in result["stability"]
    }
    rows = []
    states = [("pruned", result["plans"]), ("refitted", after_refit(result["plans"]))]
    for state, plan in [(state, plan) for state, plans in states for plan in plans]:
        mean = stability[plan["criterion"], plan["scope"], plan["fraction"]]
        own = [_row(plan, plan, LOSS, result["loss"] + plan["delta"], mean)]
        own += [_domain_row(plan, domain, mean) for domain in plan["domains"]]
        own += [_row(plan, task, task["name"], task["value"], mean) for task in plan["tasks"]]
        rows += [{**row, "state": state} for row in own]
    return rows


def _domain_row(plan: EvidenceJson, domain: CostJson, stability: float | None) -> dict[str, object]:
    row = _row(plan, domain, LOSS, domain["value"], stability)
    return {**row, "domain": domain["name"]}


def _row(
    plan: EvidenceJson, cost: PlanCostJson, measure: str, value: float, stability: float | None
) -> dict[str, object]:
    equal = cost["equal_counts"]
    return {
        "criterion": plan["criterion"],
        "scope": plan["scope"],
        "fraction": plan["fraction"],
        "measure": measure,
        "value": value,
        "delta": cost["delta"],
        "delta_low": cost["delta_interval"][0],
        "delta_high": cost["delta_interval"][1],
        "random_mean": cost["random"]["mean"],
        "random_sd": cost["random"]["sd"],
        "reversed_delta": cost["reversed_delta"],
        "p": cost["p"],
        "p_worse": cost["p_worse"],
        "p_corrected": cost["p_corrected"],
        "p_worse_corrected": cost["p_worse_corrected"],
        "low": cost["interval"][0],
        "high": cost["interval"][1],
        "verdict": cost["verdict"],
        "verdict_equal_counts": equal and equal["verdict"],
        "smallest_detectable": cost["smallest_detectable"],
        "effect": cost["effect"],
        "clusters": cost["clusters"],
        "p_full": cost["p_full"],
        "ends_alike": cost["ends_alike"],
        "stability": stability,
    }
