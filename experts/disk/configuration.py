"""What a model's config.json says about its experts. Plain dictionaries, no torch."""

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experts.disk.strict_json import is_count
from experts.errors import ExciseError

# Keys under which configurations (and modules) store E and k.
COUNT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
GROUP_KEYS = ("n_group", "num_expert_group")
TOP_K_KEYS = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")
# Where a block's router is, by module names; its tensors with an expert axis; and what stands among the experts but is one for all.
ROUTERS = frozenset({"gate", "router", "moe_statics"})
ROUTER_TENSORS = frozenset({"weight", "bias", "e_score_correction_bias", "expert_bias", "per_expert_scale"})
COMMON = "post_expert_norm"
LAYER = re.compile(
    r"(?:^|\.)(?:layers|blocks)\.(\d+)(?:\.|$)"
)  # a decoder layer in a name of a module or tensor
TOWER = re.compile(
    r"(?:^|\.)[^.]*(?:vision|visual|audio)[^.]*\."
)  # what sees and hears, in front of a layer; its experts are not pruned
UNEQUAL = "excise_experts"  # decoder layer -> experts, in the config.json of a checkpoint whose layers keep unequal numbers
PREDICTING_KEYS = (
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "mtp_num_hidden_layers",
    "num_mtp_modules",
)  # multi-token prediction


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the language model: the whole, or the nested `text_config` of a multimodal wrapper."""
    nested = config.get("text_config")
    if nested is not None and not isinstance(nested, Mapping):
        raise ExciseError(f"config.json: text_config is {reprlib.repr(nested)}, expected an object")
    return config if nested is None else nested


def in_tower(name: str) -> bool:
    """Whether a module or tensor belongs to a tower for images or sound, not to the language model."""
    layer = LAYER.search(name)
    return TOWER.search(name[: layer.start() + 1] if layer else name) is not None


def router_groups(config: Mapping[str, Any]) -> tuple[int, int]:
    """(groups, groups a token may use) of a group-limited router; (1, 1) where the configuration names no groups.

    Some routers ignore them (topk_method: greedy of DeepSeek-V2): kept evenly they do no harm, where they count an uneven plan would.
    """
    groups = next((number for key in GROUP_KEYS if (number := positive_int(config, key))), 1)
    if groups == 1:
        return 1, 1
    return groups, positive_int(config, "topk_group") or groups


def expert_axis(shape: Sequence[int], experts: int) -> int | None:
    """Where a tensor has its experts: on the first axis, or behind axes of length 1 ([1, E]); None where it has no expert axis.

    Either way an expert's part is one run of bytes.
    """
    return next(
        (
            axis
            for axis, size in enumerate(shape)
            if size == experts and all(before == 1 for before in shape[:axis])
        ),
        None,
    )


def positive_int(config: Mapping[str, Any], key: str) -> int | None:
    """A positive whole number of the configuration, None where the key is missing, null or 0.

    A list will do that has the same number for every layer.
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
    """The number under the first of several names that has one."""
    return next((number for key in keys if (number := positive_int(config, key))), None)
