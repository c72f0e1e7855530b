"""report.md: the verdicts, the rule, the evidence and the formulas of one run."""

from collections.abc import Iterator, Mapping

from criteria.text.sampled.settings import in_words
from criteria.text.windows import TextJson
from prune.allocation_table import SENTENCE
from prune.domain_table import domain_evidence
from prune.recipe.schema import Recipe
from prune.refit_tables import refit_evidence
from prune.run.result import PruneResult, TestedPlanJson, ValidationResult
from prune.run.verdicts import markdown_tables
from prune.tables import domain_notes, plain, probability, signed
from validate.results import JudgedJson

P_RULES = {
    "counted": "p = (1 + #random plans at least as good) / (R + 1).",
    "normal": "p: one-sided t of (plan − mean random) / (sd·√(1 + 1/R)), R − 1 degrees of freedom.",
}
RAW_ROWS = "Raw rows, one per plan and window: `losses.csv`; of tasks, per plan and item: `items.csv`.\n"
AFTER_REFIT = "After the refit: `refitted_losses.csv`, `refitted_items.csv`.\n"


def markdown(recipe: Recipe, result: PruneResult) -> str:
    """The whole of report.md."""
    parts = [
        f"# {recipe.model}: {recipe.criteria[0]} against chance\n",
        f"{markdown_tables(result)}\n",
        _definitions(result["loss"]),
        f"## Rule\n{result['rule']}\n",
        _nulls(result),
        f"## Evidence\n{evidence(result)}\n",
        RAW_ROWS,
        *([AFTER_REFIT] if recipe.refit else []),
    ]
    if result["allocations"]:
        parts.append(f"{SENTENCE} Every measured count: `allocation.csv`.\n")
    if result["agreement"]:
        parts.append(_agreement(result["agreement"]))
    parts += [_text(result), _checks(result), _provenance(result)]
    return "\n".join(parts)


def _definitions(loss: float) -> str:
    return f"""\
ΔCE: rise of the held-out cross-entropy over the unpruned model's {plain(loss)}, in nats per token;
smaller is better.
Every plan is measured by really removing the experts (restricted = cut = reloaded, bit-equal).
"""


def _nulls(result: ValidationResult) -> str:
    """What random plans have in common with the criterion's, and how p and intervals come about."""
    protection = ""
    if result["protected"]:
        protection = f", and keep the {result['protected']} protected super experts as it does"
    return f"""\
Random plans keep as many experts in every layer as the criterion's plan{protection}.
{P_RULES[result["chance"]]} Interval: percentile bootstrap that resamples documents (of tasks: items).
"""


def _agreement(agreement: Mapping[str, list[float | None]]) -> str:
    """Spearman with the measured removals."""
    lines = ["## Rank agreement", "Spearman with the measured removals (causal_removal), layer by layer:"]
    for criterion, layers in agreement.items():
        lines.append(f"- {criterion}: {', '.join(signed(value, 2) for value in layers)}")
    return "\n".join(lines) + "\n"


def _text(result: ValidationResult) -> str:
    return f"""\
## Text
- calibration: {_text_in_words(result["text"]["calibration"])}
- validation: {_text_in_words(result["text"]["validation"])}
- validation documents that also supplied calibration windows: {result["shared_documents"]}
- experts that no calibration token reached (no score, pruned first): {result["without_data"]}
"""


def _text_in_words(text: TextJson) -> str:
    return (
        f"{text['windows']} windows of {text['length']} tokens from {text['documents']} documents "
        f"({', '.join(text['domains'])}), hash {text['hash']}{in_words(text.get('sampled', ()))}"
    )


def _checks(result: PruneResult) -> str:
    lines = ["## Checks of the instrument"]
    lines += [f"- passed: {check['name']} ({check['evidence']})" for check in result["checks"]]
    if result["checkpoint"]:
        lines.append("- passed: 6 restricted = reloaded (logits bit-equal)")
    return "\n".join(lines) + "\n"


def _provenance(result: PruneResult) -> str:
    model, checkpoint = result["model"], result["checkpoint"]
    return (
        f"Model {model['name']}, fingerprint {model['fingerprint']}.\n"
        f"Checkpoint: {checkpoint or 'none written: the recipe stops on this verdict'}.\n"
    )


# Evidence, which the model card has too.


def evidence(result: ValidationResult) -> str:
    """What each verdict rests on, a paragraph per plan and measure."""
    lines: list[str] = []
    for plan in result["plans"]:
        lines.extend(_evidence(plan))
    lines += refit_evidence(result["plans"])
    return "\n".join(lines)


def _evidence(plan: TestedPlanJson) -> Iterator[str]:
    head = f"- **{plan['criterion']}**, scope {plan['scope']}, score = {plan['formula']}"
    counts = f"Kept per layer: {_counts(plan['kept_per_layer'])}."
    caveat = "".join(f" ({note})" for note in domain_notes(plan, plan["domains"]))
    yield f"{head}: {_against_random(plan, plan['delta'], 'nats', 'documents', caveat)} {counts}"
    yield from domain_evidence(plan)
    if equal := plan["equal_counts"]:
        null = "against random plans of the same total with equal counts per layer"
        yield f"{head}, {null}: {_against_random(equal, plan['delta'], 'nats', 'documents')}"
    for task in plan["tasks"]:
        measure = f"by {task['name']} ({task['metric']})"
        yield f"{head}, {measure}: {_against_random(task, task['delta'], 'of the items', 'items')}"


def _against_random(chance: JudgedJson, delta: float, unit: str, clusters: str, caveat: str = "") -> str:
    """Verdict, advantage, interval, effect, p and power of one test."""
    low, high = chance["interval"]
    note = f" ({chance['interval_note']})" if chance["interval_note"] else ""
    return (
        f"{chance['verdict']}{caveat}. "
        f"Advantage over the mean of {len(chance['random']['values'])} random plans "
        f"{signed(chance['random']['mean'] - delta)} {unit}, "
        f"95 % interval [{signed(low)}, {signed(high)}] over {chance['clusters']} {clusters}{note}; "
        f"effect {signed(chance['effect'], 2)} sd of the random plans; "
        f"p = {probability(chance['p'], 4)} (as good by chance), "
        f"{probability(chance['p_worse'], 4)} (as bad by chance). "
        "Smallest difference this test finds with 80 % power: "
        f"{signed(chance['smallest_detectable'])} {unit}."
    )


def _counts(counts: Mapping[str, int]) -> str:
    """Experts per layer, in one word where all layers keep as many."""
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values()))} in every layer"
    return ", ".join(f"layer {layer}: {count}" for layer, count in counts.items())
