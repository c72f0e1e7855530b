"""What a plan costs by one measure, as comparison.json has it: the loss at its top, tasks in a list."""

from collections.abc import Iterator

from prune.compare.result import ComparisonResult, TaskJson
from prune.tables import removed
from validate.results import CostJson, EvidenceJson, PlanCostJson

LOSS = "loss"
ScopeAndFraction = tuple[str, float]  # scope and fraction


def measures(result: ComparisonResult) -> list[str]:
    """The loss and the tasks, by name."""
    return [LOSS, *(task["name"] for task in result["tasks"])]


def task_of(result: ComparisonResult, measure: str) -> TaskJson | None:
    """The task that a measure is; None for the loss."""
    return next((task for task in result["tasks"] if task["name"] == measure), None)


def cost_of(plan: EvidenceJson, measure: str) -> PlanCostJson:
    """What a plan costs by one measure."""
    return plan if measure == LOSS else task_cost_of(plan, measure)


def task_cost_of(plan: EvidenceJson, task: str) -> CostJson:
    """What a plan loses of a task."""
    return next(cost for cost in plan["tasks"] if cost["name"] == task)


def budget_of(plan: EvidenceJson) -> ScopeAndFraction:
    """Of a plan."""
    return plan["scope"], plan["fraction"]


def budget_in_words(scope: str, fraction: float) -> str:
    """For titles: scope layer, 50% pruned."""
    return f"scope {scope}, {removed(fraction)} pruned"


def budgets(result: ComparisonResult) -> list[ScopeAndFraction]:
    """In the order of the recipe."""
    return list(dict.fromkeys(budget_of(plan) for plan in result["plans"]))


def costs(result: ComparisonResult, measure: str) -> Iterator[tuple[EvidenceJson, PlanCostJson]]:
    """(plan, its cost by this measure), budget by budget, best first."""
    for budget in budgets(result):
        plans = [plan for plan in result["plans"] if budget_of(plan) == budget]
        pairs = [(plan, cost_of(plan, measure)) for plan in plans]
        yield from sorted(pairs, key=lambda pair: pair[1]["delta"])
