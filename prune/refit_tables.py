"""Plans before and after their refit: tables and sentences, for `excise prune` and `excise compare`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

from prune.domain_table import domain_evidence, domain_tables
from prune.tables import Table, percent, probability, signed, spread, verdict
from validate.results import CostJson, EvidenceJson, PlanCostJson

TITLE = "After the refit, of random plans too"
HEAD = (
    "criterion",
    "scope",
    "fraction",
    "ΔCE before → after [95 %]",
    "taken back",
    "random after (mean ± sd)",
    "reversed after",
    "p",
    "after Holm",
    "verdict after",
    "lead over random",
)


def after_refit(plans: Sequence[EvidenceJson]) -> list[EvidenceJson]:
    """The plans that were refitted, as evidence of the state after it: every table of plans can show them."""
    views = ({**plan, **plan["refit"], "refit": None} for plan in plans if plan["refit"])
    return [cast("EvidenceJson", view) for view in views]


def refit_tables(plans: Sequence[EvidenceJson]) -> Iterator[Table]:
    """Yield the loss of every plan before and after, then after it by domain; nothing without a refit."""
    rows = [_row(plan) for plan in plans if plan["refit"]]
    if rows:
        yield Table(TITLE, HEAD, rows)
    for table in domain_tables(after_refit(plans)):
        yield replace(table, title=f"{table.title}, after the refit")


def refit_conclusions(plans: Sequence[EvidenceJson]) -> list[str]:
    """Return the verdict on each refitted plan in a sentence, with what became of its lead."""
    found = []
    for plan in plans:
        if after := plan["refit"]:
            moved = f"ΔCE {signed(plan['delta'])} → {signed(after['delta'])}"
            lead = f"lead over random plans: {after['survival']}"
            found.append(f"After the refit ({moved}; {lead}): {after['conclusion']}")
    return found


def refit_evidence(plans: Sequence[EvidenceJson]) -> Iterator[str]:
    """Yield what each verdict after the refit rests on, a line per plan and measure."""
    for plan in after_refit(plans):
        yield _evidence(plan, plan, "the loss", "nats per token")
        yield from domain_evidence(plan)
        for task in plan["tasks"]:
            yield _evidence(plan, task, f"{task['name']} ({task['metric']})", "of the items")


def _row(plan: EvidenceJson) -> tuple[str, ...]:
    after = plan["refit"]
    assert after is not None, "asked only of refitted plans"
    low, high = after["delta_interval"]
    view = cast("PlanCostJson", after)
    return (
        plan["criterion"],
        plan["scope"],
        f"{plan['fraction']:g}",
        f"{signed(plan['delta'])} → {signed(after['delta'])} [{signed(low, 3)}, {signed(high, 3)}]",
        "–" if after["share"] is None else percent(after["share"]),
        spread(after["random"]["mean"], after["random"]["sd"]),
        signed(after["reversed_delta"]),
        probability(after["p"]),
        probability(after["p_corrected"]),
        verdict(view, after["domains"]),
        after["survival"],
    )


def _evidence(plan: EvidenceJson, cost: PlanCostJson | CostJson, measure: str, unit: str) -> str:
    low, high = cost["interval"]
    random = cost["random"]
    return (
        f"- **{plan['criterion']}**, scope {plan['scope']}, after the refit, by {measure}: "
        f"{cost['verdict']}. "
        f"Advantage over the mean of {len(random['values'])} refitted random plans "
        f"{signed(random['mean'] - cost['delta'])} {unit}, 95 % interval [{signed(low)}, {signed(high)}] "
        f"over {cost['clusters']} clusters; effect {signed(cost['effect'], 2)} sd; "
        f"p = {probability(cost['p'], 4)} (as good by chance), {probability(cost['p_worse'], 4)} (as bad). "
        f"Smallest difference found with 80 % power: {signed(cost['smallest_detectable'])} {unit}."
    )
