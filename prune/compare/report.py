"""comparison.md, and the tables of `excise compare`. Overlap and stability come before any score."""

from collections.abc import Iterator
from dataclasses import replace

from prune.allocation_table import SENTENCE, allocation_tables
from prune.compare.cost_tables import cost_table
from prune.compare.costs import LOSS, budget_in_words, budget_of, costs, measures
from prune.compare.difference_tables import difference_tables, scope_tables
from prune.compare.plan_tables import agreement_table, overlap_tables
from prune.compare.result import ComparisonResult
from prune.domain_table import conclusions as sentences
from prune.domain_table import domain_evidence, domain_tables
from prune.refit_tables import after_refit, refit_conclusions, refit_evidence, refit_tables
from prune.tables import Table, domain_notes, markdown_table, probability, signed
from validate.results import EvidenceJson, PlanCostJson


def tables(result: ComparisonResult) -> Iterator[Table]:
    """Every table, in reading order."""
    yield from overlap_tables(result)
    yield from allocation_tables(result["allocations"])
    if result["agreement"]["reference"]:
        yield agreement_table(result["agreement"])
    for measure in measures(result):
        yield cost_table(result, measure)
        if measure == LOSS:
            yield from domain_tables([plan for plan, _ in costs(result, LOSS)])
        yield from difference_tables(result, measure)
        yield from scope_tables(result, measure)
    yield from _after_refit(result)


def _after_refit(result: ComparisonResult) -> Iterator[Table]:
    """The plans after their refit, best first, and which of them differ then."""
    differences = result["refit"]
    if differences is None:
        return
    view: ComparisonResult = {**result, **differences, "plans": after_refit(result["plans"]), "refit": None}
    after = {(plan["digest"], plan["criterion"]): place for place, (plan, _) in enumerate(costs(view, LOSS))}
    order = sorted(result["plans"], key=lambda plan: after[plan["digest"], plan["criterion"]])
    yield from refit_tables(order)
    for measure in measures(result):
        shown = [*difference_tables(view, measure), *scope_tables(view, measure)]
        if measure != LOSS:
            shown.insert(0, cost_table(view, measure))
        for table in shown:
            yield replace(table, title=f"After the refit: {table.title}")


def markdown(result: ComparisonResult) -> str:
    """The whole of comparison.md."""
    parts = [f"# {result['model']['name']}: criteria head to head\n"]
    parts += [f"## {table.title}\n\n{markdown_table(table)}\n" for table in tables(result)]
    parts += [
        _conclusions(result),
        _rules(result),
        f"## How it was computed\n{_methods(result['seed'])}\n",
        _evidence(result),
        _checks(result),
    ]
    return "\n".join(filter(None, parts))


def conclusions(result: ComparisonResult) -> Iterator[str]:
    """The verdict on every plan in a sentence, budget by budget, best first; none with a single domain."""
    for plan, _ in costs(result, LOSS):
        for sentence in [*sentences([plan]), *refit_conclusions([plan])]:
            yield f"{budget_in_words(*budget_of(plan))}: {sentence}"


def _conclusions(result: ComparisonResult) -> str:
    lines = [f"- {line}" for line in conclusions(result)]
    return "\n".join(["## Conclusions", *lines, ""]) if lines else ""


def _rules(result: ComparisonResult) -> str:
    lines = ["## Rules", f"- Verdict. {result['rule']}", f"- Pairs. {result['pair_rule']}"]
    lines += [f"- {SENTENCE}"] if result["allocations"] else []
    lines += [f"- {note}" for note in result["notes"]]
    return "\n".join(lines) + "\n"


def _methods(seed: int) -> str:
    """Formulas of every number, and where its raw rows are."""
    return f"""\
- Cost of a plan: mean over rows of (value under the plan − value of the unpruned model). Rows are windows
  weighted by their tokens (`losses.csv`) or items (`items.csv`), under the plans' `digest` of
  `comparison.json`.
- Intervals: percentile bootstrap, 9,999 resamples of whole documents (of tasks: items), seed {seed}
  (scipy.stats.bootstrap).
- p, counted: (1 + #random plans at least as good) / (R + 1). p, normal: one-sided t of (plan − mean random) /
  (sd·√(1 + 1/R)), R − 1 degrees of freedom; `normality_p` is Shapiro-Wilk's. Holm over criteria × budgets,
  for each measure and null by itself.
- Pairs: sign flips of whole documents (scipy.stats.permutation_test), of items answered right or wrong exact
  McNemar (statsmodels).
- Overlap: (Σ|A∩B| − c) / (Σ min(|A|, |B|) − c), c = Σ|A|·|B| / E over layers. Stability: the same between
  calibration seeds."""


def _evidence(result: ComparisonResult) -> str:
    """What each verdict rests on, a line per plan and measure."""
    lines = ["## Evidence"]
    for measure in measures(result):
        for plan, cost in costs(result, measure):
            lines.append(_evidence_line(plan, cost, measure))
            lines += domain_evidence(plan) if measure == LOSS else []
    lines += refit_evidence([plan for plan, _ in costs(result, LOSS)])
    return "\n".join(lines) + "\n"


def _evidence_line(plan: EvidenceJson, cost: PlanCostJson, measure: str) -> str:
    low, high = cost["interval"]
    note = f" ({cost['interval_note']})" if cost["interval_note"] else ""
    domains = plan["domains"] if measure == LOSS else []
    caveat = "".join(f" ({note})" for note in domain_notes(cost, domains))
    budget = budget_in_words(*budget_of(plan))
    return (
        f"- **{plan['criterion']}**, {budget}, by {measure}; score = {plan['formula']}: "
        f"{cost['verdict']}{caveat}. "
        f"Advantage over the mean of {len(cost['random']['values'])} random plans "
        f"[{signed(low)}, {signed(high)}] (95 %, {cost['clusters']} clusters{note}), "
        f"effect {signed(cost['effect'], 2)} sd, "
        f"p as good {probability(cost['p'])}, as bad {probability(cost['p_worse'])} "
        f"(Holm {probability(cost['p_corrected'])}, {probability(cost['p_worse_corrected'])}), "
        f"Shapiro-Wilk p of the random plans {probability(cost['random']['normality_p'])}; "
        "smallest difference found with 80 % power at the first step of Holm: "
        f"{signed(cost['smallest_detectable'])}."
    )


def _checks(result: ComparisonResult) -> str:
    lines = ["## Checks of the instrument"]
    lines += [f"- passed: {check['name']} ({check['evidence']})" for check in result["checks"]]
    return "\n".join(lines) + "\n"
