"""The model card of `excise prune`: what was removed, and whether the choice of experts beat chance."""

from criteria.text.sampled.settings import in_words
from experts.disk.layout import Layout
from experts.plan import Plan
from prune.allocation_table import SENTENCE
from prune.checkpoint.card import IDS, UNCHANGED_WEIGHTS, front_matter, how_to_load, kept_experts, title
from prune.recipe.schema import Recipe
from prune.run.report import evidence
from prune.run.result import ValidationResult
from prune.run.verdicts import markdown_tables
from prune.tables import plain


def model_card(
    recipe: Recipe,
    layout: Layout,
    plan: Plan,
    result: ValidationResult,
    weights: str = UNCHANGED_WEIGHTS,
) -> str:
    """README.md of a tested plan, with hub metadata, the plan in words and the evidence.

    Args:
        result: the content of validation.json.
        weights: a sentence on what happened to them.
    """
    return f"""{front_matter(recipe.model, layout.checkpoint)}
# {title(recipe.model, plan)}

{kept_experts(layout, plan)} {weights} {_ranking(plan, result)}

{markdown_tables(result)}

ΔCE in nats per token over the unpruned model's {plain(result["loss"])}, on held-out text.

{evidence(result)}

{result["rule"]}

{IDS}.
{how_to_load(plan)}"""


def _counts(result: ValidationResult) -> str:
    """How counts per layer were chosen, where the scores did not decide."""
    return f" {SENTENCE}" if result["allocations"] else ""


def _ranking(plan: Plan, result: ValidationResult) -> str:
    """By which scores, of which text and which model, under which budget."""
    text = result["text"]["calibration"]
    return (
        f"Ranked by `{plan.criterion}` = {result['plans'][0]['formula']} on "
        f"{text['windows']} windows of {text['length']} tokens\n"
        f"(hash {text['hash']}{in_words(text.get('sampled', ()))}). "
        f"Budget: {plan.budget}.{_counts(result)} Source fingerprint: {result['model']['fingerprint']}."
    )
