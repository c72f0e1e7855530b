"""The model card of a pruned checkpoint: where it comes from, what was removed, and whether the choice beat chance."""

from pathlib import Path
from typing import Any

import yaml

from experts.disk.layout import Layout
from experts.disk.names import commit_of, hub_name
from experts.disk.shards import Checkpoint
from experts.plan import Plan
from prune.checkpoint.history import in_words, steps_of
from prune.checkpoint.source_card import read_source_card
from prune.recipe.schema import Recipe
from prune.recover.report import training_in_words
from prune.run.report import evidence, table


def model_card(recipe: Recipe, layout: Layout, plan: Plan, result: dict[str, Any]) -> str:
    """README.md with hub metadata, the plan in words and the evidence."""
    text = result["text"]["calibration"]
    return f"""{_front_matter(recipe.model, layout.checkpoint)}
# {_title(recipe.model)}, {plan.fraction:.0%} of the experts removed

{_what(layout, plan)} Ranked by `{plan.criterion}` = {result["plans"][0]["formula"]} on {text["windows"]} windows of {text["length"]} tokens
(hash {text["hash"]}). Budget: {plan.budget}. Source fingerprint: {result["model"]["fingerprint"]}.

{table(result)}

ΔCE in nats per token over the unpruned model's {result["loss"]:.4f}, on held-out text.

{evidence(result)}

{result["rule"]}

The ids of the kept experts, in the numbering of the source, stand in `excise_plan.json`.
{_how_to_load(plan)}"""


def plan_card(source: str, layout: Layout, plan: Plan) -> str:
    """The card of a plan that was exported by hand, without a test."""
    return f"""{_front_matter(source, layout.checkpoint)}
# {_title(source)}, {plan.fraction:.0%} of the experts removed

{_what(layout, plan)} Plan: {plan.criterion or "made by hand"}; {plan.budget or "no budget recorded"}.
This export was not tested against random selection.

The ids of the kept experts, in the numbering of the source, stand in `excise_plan.json`.
{_how_to_load(plan)}"""


def recovered_card(recipe: Recipe, layout: Layout, plan: Plan, training: dict[str, Any]) -> str:
    """The card of a pruned checkpoint whose weights were trained since."""
    return f"""{_front_matter(recipe.model, layout.checkpoint)}
# {_title(recipe.model)}, {plan.fraction:.0%} of the experts removed, recovered

{_kept(layout, plan)} Plan: {plan.criterion or "made by hand"}; {plan.budget or "no budget recorded"}.

Then trained: {training_in_words(training)} The adapters are merged; all other tensors are byte-identical to the source.
What pruning took, what this gave back, and whether the choice of experts still matters after it stands in the run's `recovery.md`.

The ids of the kept experts, in the numbering of the source, stand in `excise_plan.json`, the training in `excise_recovery.json`.
{_how_to_load(plan)}"""


def _what(layout: Layout, plan: Plan) -> str:
    return f"{_kept(layout, plan)} No weight was changed; kept tensors are byte-identical to the source."


def _kept(layout: Layout, plan: Plan) -> str:
    each = (
        next(iter(plan.counts.values()))
        if plan.uniform
        else f"{min(plan.counts.values())} to {max(plan.counts.values())}"
    )
    dropped = (
        f" {len(layout.predicting)} tensors of multi-token-prediction layers were dropped."
        if layout.predicting
        else ""
    )
    before = in_words(steps_of(layout.checkpoint.folder))
    history = f" The source has a history: {before}." if before else ""
    return (
        f"Keeps {plan.total} of {plan.num_experts * len(plan.kept)} routed experts "
        f"({each} of {plan.num_experts} in each of {len(plan.kept)} MoE layers, top-{layout.shape.top_k})."
        f"{dropped}{history}"
    )


def _how_to_load(plan: Plan) -> str:
    if plan.uniform:
        return "\nLoads like the source model.\n"
    return (
        "\nLayers keep unequal numbers of experts: load with `AutoModelForCausalLM.from_pretrained(…, trust_remote_code=True)`, "
        "which uses the `modeling_excise.py` beside the weights. Serving engines want equal counts (scope `layer`).\n"
    )


def _title(source: str) -> str:
    """A model's name without what stands in front of it, or behind it."""
    named = hub_name(source)
    return (named.id if named else str(Path(source).absolute())).rsplit("/", 1)[-1]


def _front_matter(source: str, checkpoint: Checkpoint) -> str:
    before, named = read_source_card(checkpoint.folder).entries, hub_name(source)
    fields: dict[str, Any] = {
        **({"base_model": named.id} if named else {}),
        **({"base_model_revision": commit} if named and (commit := commit_of(checkpoint.folder)) else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["moe", "pruned", "excise"],
    }
    return "---\n" + yaml.safe_dump({**fields, **before}, sort_keys=False, allow_unicode=True) + "---"
