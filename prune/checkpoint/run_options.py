"""Options of a source's config.json under which a pruned checkpoint would fail at every forward. No torch."""

from collections.abc import Mapping
from typing import Any

from experts.disk.configuration import text_config
from experts.plan import Plan


def corrected_options(config: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Option -> the value that the new checkpoint gets instead, of those that the source sets to another one.

    output_router_logits adds a loss of the router that wants the same number of experts in every layer; without
    return_dict models of transformers 5 cannot read their own outputs.
    """
    wanted = {"return_dict": True} if plan.uniform else {"return_dict": True, "output_router_logits": False}
    tables = (config, text_config(config))
    return {
        key: value
        for key, value in wanted.items()
        if any(table.get(key, value) not in (None, value) for table in tables)
    }


def option_notes(config: Mapping[str, Any], plan: Plan) -> list[str]:
    """What was changed and why, a line each."""
    why = {
        "output_router_logits": "the router's loss cannot be made of unequal counts per layer",
        "return_dict": "without it transformers cannot run the model",
    }
    changed = corrected_options(config, plan)
    return [
        f"config.json: {key} is {str(value).lower()} in the new checkpoint: {why[key]}"
        for key, value in changed.items()
    ]
