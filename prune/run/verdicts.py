"""The tables of `excise prune`, for terminal, report.md and model card: the loss, then tasks."""

from collections.abc import Sequence

from experts.units import human
from prune.allocation_table import allocation_tables
from prune.domain_table import conclusions, domain_tables
from prune.refit_tables import after_refit, refit_conclusions, refit_tables
from prune.run.result import TestedPlanJson, ValidationResult
from prune.tables import Table, markdown_table, plain, probability, signed, spread, verdict
from validate.results import CostJson, EvidenceJson

LOSS_HEAD = (
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


def tables(result: ValidationResult) -> list[Table]:
    """The tested plans by the held-out loss, the one that is written first; by domain; by every task."""
    loss = [
        Table("", LOSS_HEAD, [_loss_row(result, plan) for plan in result["plans"]]),
        *domain_tables(result["plans"]),
        *refit_tables(result["plans"]),
        *allocation_tables(result["allocations"]),
    ]
    after = _task_table(after_refit(result["plans"]), "Tasks after the refit")
    return [*loss, *_task_table(result["plans"], ""), *after]


def _task_table(plans: Sequence[EvidenceJson], title: str) -> list[Table]:
    """The plans by every task; no table where there is none."""
    rows = [_task_row(plan, task) for plan in plans for task in plan["tasks"]]
    return [Table(title, TASK_HEAD, sorted(rows, key=lambda row: row[0]))] if rows else []


def markdown_tables(result: ValidationResult) -> str:
    """The same in Markdown, and the verdict on the plan that is written in a sentence."""
    parts = [_titled(table) for table in tables(result)]
    return "\n\n".join([*parts, *sentences(result)])


def sentences(result: ValidationResult) -> list[str]:
    """The verdict on the plan that is written, before and after its refit."""
    first = result["plans"][:1]
    return [*conclusions(first), *refit_conclusions(first)]


def _titled(table: Table) -> str:
    return f"{table.title}:\n\n{markdown_table(table)}" if table.title else markdown_table(table)


def _loss_row(result: ValidationResult, plan: TestedPlanJson) -> tuple[str, ...]:
    return (
        plan["criterion"],
        plan["scope"],
        f"{plan['kept']}/{plan['of']}",
        f"{human(result['size']['before'])} → {human(plan['size'])}",
        signed(plan["delta"]),
        spread(plan["random"]["mean"], plan["random"]["sd"]),
        signed(plan["reversed_delta"]),
        probability(plan["p"]),
        verdict(plan, plan["domains"]),
    )


def _task_row(plan: EvidenceJson, task: CostJson) -> tuple[str, ...]:
    """The metric itself, larger is better."""
    full, random = task["full"], task["random"]
    return (
        f"{task['name']} ({task['metric']})",
        plan["criterion"],
        plan["scope"],
        plain(full, 3),
        plain(task["value"], 3),
        f"{plain(full - random['mean'], 3)} ± {plain(random['sd'], 3)}",
        plain(_difference(full, task["reversed_delta"]), 3),
        probability(task["p"]),
        verdict(task),
    )


def _difference(full: float, lost: float | None) -> float | None:
    """What is left of a task's score; None where the loss is not known."""
    return None if lost is None else full - lost
