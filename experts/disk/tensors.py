"""What names and shapes tell of modules and tensors: decoder layers, towers, experts, routers."""

import re
from collections.abc import Sequence

# A decoder layer in the name of a module or tensor.
LAYER = re.compile(r"(?:^|\.)(?:layers|blocks)\.(\d+)(?:\.|$)")
# The part of a name up to the innermost layer, its number included.
UP_TO_LAYER = re.compile(r"^.*\.layers\.\d+\.")
NUMBER = re.compile(r"\.(\d+)(?=\.|$)")
# Vision and audio towers, in front of a layer; their experts are never pruned.
TOWER = re.compile(r"(?:^|\.)[^.]*(?:vision|visual|audio)[^.]*\.")
# A head for multi-token prediction in a module of its own.
PREDICTION_HEAD = re.compile(r"(^|\.)mtp(_\w+)?\.")

# Experts stored one by one, and all experts of a layer in one tensor.
ONE_EXPERT = re.compile(r"^(?P<block>.+)\.experts\.(?P<id>\d+)\.(?P<rest>.+)$")
FUSED_EXPERTS = re.compile(r"^(?P<block>.+)\.experts\.(?P<rest>[^.\d].*)$")
# The same as Granite names it.
STACKED_EXPERTS = re.compile(r"^(?P<block>.+)\.(input|output)_linear\.weight$")
# One expert, by a name as settings of quantisation tools write it.
NAMED_EXPERT = re.compile(
    r"^(?P<head>[\w.]*\blayers\.(?P<layer>\d+)\.[\w.]*\bexperts\.)(?P<id>\d+)(?P<tail>(\.[\w.]*)?)$"
)
# A module among the experts that all of them share.
SHARED_NORM = "post_expert_norm"

# Modules that hold a router, and its tensors with an expert axis.
ROUTERS = frozenset({"gate", "router", "moe_statics"})
ROUTER_TENSORS = frozenset({"weight", "bias", "e_score_correction_bias", "expert_bias", "per_expert_scale"})
# Router tensors that some checkpoints keep beside the experts themselves.
BESIDE_EXPERTS = frozenset({"e_score_correction_bias", "expert_bias"})
# In the name of a tensor that belongs to a quantised weight.
QUANTIZED = re.compile(r"weight_scale|scale_inv|qweight|qzeros|packed|g_idx|\.scales$")


def in_tower(name: str) -> bool:
    """Whether a module or tensor belongs to a tower for images or sound, not to the language model."""
    layer = LAYER.search(name)
    before_layer = name[: layer.start() + 1] if layer else name
    return TOWER.search(before_layer) is not None


def in_decoder(name: str) -> bool:
    """Whether a module or tensor is part of a decoder layer."""
    return UP_TO_LAYER.match(name) is not None and not in_tower(name)


def name_in_layer(name: str) -> str:
    """A name without what leads to its layer: `self_attn.q_proj` of `model.layers.3.self_attn.q_proj`."""
    return UP_TO_LAYER.sub("", name)


def numbers_in(name: str) -> list[int]:
    """The numbers among the parts of a name: `[3]` of `model.layers.3.mlp`."""
    return [int(number) for number in NUMBER.findall(name)]


def list_of(name: str) -> str:
    """The list that holds a numbered module: `model.layers` of `model.layers.3.mlp`."""
    return NUMBER.split(name)[0]


def is_whole_layer(name: str) -> bool:
    """Whether a module is a decoder layer itself, and not a part of one."""
    return re.search(r"\.\d+$", name) is not None


def expert_axis(shape: Sequence[int], num_experts: int) -> int | None:
    """Where a tensor has its experts: on the first axis, or behind axes of length 1 ([1, E]).

    Either way an expert's part is one run of bytes.

    Returns:
        The axis of length `num_experts`, None where the tensor has no expert axis.
    """
    for axis, size in enumerate(shape):
        if size == num_experts:
            return axis
        if size != 1:
            return None
    return None
