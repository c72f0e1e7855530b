"""The model card of `excise finetune`: what was removed, and how the rest was trained."""

from experts.disk.layout import Layout
from experts.plan import Plan
from finetune.results import TrainingJson
from prune.checkpoint.card import IDS, front_matter, how_to_load, kept_experts, plan_origin, title
from prune.recipe.schema import Recipe
from prune.recover.training import training_in_words


def recovered_card(recipe: Recipe, layout: Layout, plan: Plan, training: TrainingJson) -> str:
    """README.md of a pruned checkpoint whose weights were trained since.

    Args:
        training: as `training_provenance` returns it.
    """
    return f"""{front_matter(recipe.model, layout.checkpoint)}
# {title(recipe.model, plan)}, recovered

{kept_experts(layout, plan)} {plan_origin(plan)}

{_refitted(recipe)}Then trained: {training_in_words(training)}
The adapters are merged; all other tensors are byte-identical to the source.
What pruning took and training gave back, and whether the choice of experts still matters, is in the run's
`recovery.md`.

{IDS}, the training in `excise_recovery.json`.
{how_to_load(plan)}"""


def _refitted(recipe: Recipe) -> str:
    if recipe.refit is None:
        return ""
    return "The kept experts' down projections were refitted by least squares. "
