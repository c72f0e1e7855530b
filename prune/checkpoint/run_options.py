"""Options of a source's config.json under which a pruned checkpoint would fail at every forward."""

from collections.abc import Mapping
from typing import Any

from experts.disk.configuration import text_config
from experts.plan import Plan

REASONS = {
    "output_router_logits": "the router's loss cannot be made of unequal counts per layer",
    "return_dict": "without it transformers cannot run the model",
}


def corrected_options(config: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Options that the source sets to a value the new checkpoint cannot have, with the value it gets instead.

    output_router_logits adds a loss of the router that wants the same number of experts in every layer;
    without return_dict models of transformers 5 cannot read their own outputs.
    """
    required = {"return_dict": True}
    if not plan.uniform:
        required["output_router_logits"] = False
    tables = (config, text_config(config))
    return {
        option: value
        for option, value in required.items()
        if any(table.get(option, value) not in (None, value) for table in tables)
    }


def option_notes(config: Mapping[str, Any], plan: Plan) -> list[str]:
    """What was changed and why, a line per option."""
    notes = []
    for option, value in corrected_options(config, plan).items():
        shown = str(value).lower()
        notes.append(f"config.json: {option} is {shown} in the new checkpoint: {REASONS[option]}")
    return notes
