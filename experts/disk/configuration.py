"""What a model's config.json says about its experts. Plain dictionaries, no torch."""

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from experts.disk.strict_json import is_count
from experts.errors import ExciseError

# Names under which configurations (and modules) store E, k and their like.
COUNT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K_KEYS = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")
GROUP_KEYS = ("n_group", "num_expert_group")
SHARED_KEYS = ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
# How many layers of multi-token prediction follow the decoder.
PREDICTING_KEYS = (
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "mtp_num_hidden_layers",
    "num_mtp_modules",
)
# Decoder layer -> experts, in the config.json of a checkpoint whose layers keep unequal numbers.
UNEQUAL = "excise_experts"


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the language model.

    That is the whole, or the nested `text_config` of a multimodal wrapper.
    """
    nested = config.get("text_config")
    if nested is not None and not isinstance(nested, Mapping):
        raise ExciseError(f"config.json: text_config is {reprlib.repr(nested)}, expected an object")
    return config if nested is None else nested


def router_groups(config: Mapping[str, Any]) -> tuple[int, int]:
    """Groups of a group-limited router, and how many of them a token may use.

    Some routers ignore the groups that their configuration names (DeepSeek-V2 with topk_method: greedy). An
    even plan is harmless there; where groups do count, an uneven one would route wrongly.

    Returns:
        (1, 1) where the configuration names no groups.
    """
    groups = first_positive(config, GROUP_KEYS) or 1
    if groups == 1:
        return 1, 1
    return groups, positive_int(config, "topk_group") or groups


def positive_int(config: Mapping[str, Any], key: str) -> int | None:
    """A positive whole number of the configuration, None where the key is missing, null or 0.

    A list that has the same number for every layer will do.

    Raises:
        ExciseError: the value is anything else.
    """
    value = config.get(key)
    if isinstance(value, list) and value and all(entry == value[0] for entry in value):
        value = value[0]
    if not value:
        return None
    if not is_count(value):
        raise ExciseError(f"config.json: {key} is {reprlib.repr(value)}, expected a whole number")
    return int(value)


def first_positive(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    """The number under the first of several keys that has one."""
    for key in keys:
        number = positive_int(config, key)
        if number:
            return number
    return None
