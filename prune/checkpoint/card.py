"""The model card of a checkpoint: what every card says, and the card of a plan that was not tested."""

from pathlib import Path
from typing import Any

import yaml

from experts.disk.layout import Layout
from experts.disk.names import commit_of, hub_name
from experts.disk.shards import Checkpoint
from experts.plan import Plan
from prune.checkpoint.history import in_words, steps_of
from prune.checkpoint.source_card import read_source_card
from prune.tables import percent

UNCHANGED_WEIGHTS = "No weight was changed; kept tensors are byte-identical to the source."
IDS = "The ids of the kept experts, in the numbering of the source, are in `excise_plan.json`"


def plan_card(source: str, layout: Layout, plan: Plan, weights: str = UNCHANGED_WEIGHTS) -> str:
    """The card of a plan that was exported by hand, without a test.

    Args:
        source: the unpruned model, as the user named it.
        layout: of that model.
        plan: the experts that are kept.
        weights: a sentence on what happened to them.
    """
    return f"""{front_matter(source, layout.checkpoint)}
# {title(source, plan)}

{kept_experts(layout, plan)} {weights} {plan_origin(plan)}
This export was not tested against random selection.

{IDS}.
{how_to_load(plan)}"""


def front_matter(source: str, checkpoint: Checkpoint) -> str:
    """YAML that the hub reads: base model, library, task, tags, and the source's licence and languages."""
    entries: dict[str, Any] = {}
    named = hub_name(source)
    if named:
        entries["base_model"] = named.id
        if commit := commit_of(checkpoint.folder):
            entries["base_model_revision"] = commit
    entries["library_name"] = "transformers"
    entries["pipeline_tag"] = "text-generation"
    entries["tags"] = ["moe", "pruned", "excise"]
    entries.update(read_source_card(checkpoint.folder).entries)
    return "---\n" + yaml.safe_dump(entries, sort_keys=False, allow_unicode=True) + "---"


def title(source: str, plan: Plan) -> str:
    """The source's name, without its folder or organisation, and the share that was removed."""
    named = hub_name(source)
    path = named.id if named else str(Path(source).absolute())
    return f"{path.rsplit('/', 1)[-1]}, {percent(plan.fraction)} of the experts removed"


def kept_experts(layout: Layout, plan: Plan) -> str:
    """One sentence on the kept experts, and what else is to be said of the source."""
    counts = plan.counts.values()
    each = str(min(counts)) if plan.uniform else f"{min(counts)} to {max(counts)}"
    where = f"in each of {len(plan.kept)} MoE layers, top-{layout.shape.top_k}"
    sentences = [
        f"Keeps {plan.total} of {layout.shape.total} routed experts ({each} of {plan.num_experts} {where})."
    ]
    if layout.predicting:
        sentences.append(f"{len(layout.predicting)} tensors of multi-token-prediction layers were dropped.")
    if steps := steps_of(layout.checkpoint.folder):
        sentences.append(f"The source has a history: {in_words(steps)}.")
    return " ".join(sentences)


def plan_origin(plan: Plan) -> str:
    """Which criterion and budget the plan came from."""
    return f"Plan: {plan.criterion or 'made by hand'}; {plan.budget or 'no budget recorded'}."


def how_to_load(plan: Plan) -> str:
    """What to pass to transformers, and what serving engines want."""
    if plan.uniform:
        return "\nLoads like the source model.\n"
    return (
        "\nLayers keep unequal numbers of experts: load with "
        "`AutoModelForCausalLM.from_pretrained(…, trust_remote_code=True)`, "
        "which uses the `modeling_excise.py` beside the weights. "
        "Serving engines want equal counts (scope `layer`).\n"
    )
