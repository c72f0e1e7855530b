"""`excise inspect`: what a checkpoint is made of, from headers and configuration alone, without torch."""

from typing import Any, NotRequired, TypedDict

from criteria.budget import from_fraction
from experts.disk.configuration import TOP_K_KEYS, UNEQUAL, first_positive, positive_int, text_config
from experts.disk.find import find_model
from experts.disk.layout import Layout, lay_out
from experts.disk.shards import Checkpoint
from experts.errors import ExciseError
from prune.checkpoint.history import in_words, steps_of

FRACTIONS = (0.25, 0.5, 0.75)


class ParametersJson(TypedDict):
    """Stored elements; quantised formats count packed elements and scales."""

    experts: int  # inside routed experts
    elsewhere: int  # all others


class SavingJson(TypedDict):
    """What pruning a share of the experts would save."""

    fraction: float  # that share
    keep: NotRequired[int]  # experts that every layer keeps
    size: NotRequired[int]  # bytes of all tensors afterwards
    saved: NotRequired[int]  # bytes less than before
    impossible: NotRequired[str]  # why this share cannot be removed; then the three before are missing


class InspectResult(TypedDict):
    """What `excise inspect --json` prints."""

    folder: str  # where the checkpoint is; on the hub, its name with the commit that was read
    family: str  # model_type of config.json
    moe_layers: int  # L
    layers: list[int]  # decoder layers that hold experts [L]
    experts: NotRequired[int]  # E in every layer (equal counts only)
    kept_per_layer: NotRequired[dict[int, int]]  # decoder layer -> experts (unequal counts only)
    top_k: int | None  # experts that a token uses, k
    groups: NotRequired[int]  # router groups; 1 = none (equal counts only)
    groups_per_token: NotRequired[int]  # groups that a token may use (equal counts only)
    shared_experts: NotRequired[int]  # experts that every token uses (equal counts only)
    dtypes: list[str]  # of the tensors
    parameters: ParametersJson  # inside experts and elsewhere
    size: int  # bytes of all tensors
    multi_token_prediction_tensors: NotRequired[int]  # which an export drops (equal counts only)
    savings: NotRequired[list[SavingJson]]  # by some shares of the experts (equal counts only)
    notes: list[str]  # what is odd about the files
    history: str  # how the checkpoint came about, where Excise wrote it; else empty


def inspect_model(name: str) -> InspectResult:
    """What a model is made of, wherever it is.

    Args:
        name: folder, `demo` or hub id.

    Raises:
        ExciseError: there is no such model, or it has no experts that Excise knows.
    """
    model = find_model(name)
    facts = checkpoint_summary(model.headers())
    facts["folder"] = model.pinned
    return facts


def checkpoint_summary(checkpoint: Checkpoint) -> InspectResult:
    """What a checkpoint is made of."""
    if UNEQUAL in checkpoint.config:
        return _unequal_summary(checkpoint)
    return summary(lay_out(checkpoint))


def summary(layout: Layout) -> InspectResult:
    """Family, sizes and savings of a checkpoint whose layers hold equally many experts."""
    checkpoint, shape = layout.checkpoint, layout.shape
    return {
        "folder": str(checkpoint.folder),
        "family": layout.family,
        "moe_layers": shape.num_layers,
        "layers": list(shape.layers),
        "experts": shape.num_experts,
        "top_k": shape.top_k,
        "groups": shape.groups,
        "groups_per_token": shape.top_groups,
        "shared_experts": layout.num_shared_experts,
        "dtypes": _dtypes(checkpoint),
        "parameters": _parameters(checkpoint, layout.expert_parameters),
        "size": checkpoint.size,
        "multi_token_prediction_tensors": len(layout.predicting),
        "savings": [_saving(layout, fraction) for fraction in FRACTIONS],
        "notes": list(checkpoint.notes),
        "history": in_words(steps_of(checkpoint.folder)),
    }


def _saving(layout: Layout, fraction: float) -> SavingJson:
    """Of removing the same share in every layer, and the prediction layers that an export drops."""
    shape = layout.shape
    try:
        keep = from_fraction(shape, fraction, "layer").total // shape.num_layers
    except ExciseError as error:
        return {"fraction": fraction, "impossible": str(error)}
    saved = sum(layout.bytes_per_expert.values()) * (shape.num_experts - keep)
    saved += sum(tensor.size for tensor in layout.predicting)
    return {"fraction": fraction, "keep": keep, "size": layout.checkpoint.size - saved, "saved": saved}


def _unequal_summary(checkpoint: Checkpoint) -> InspectResult:
    """Of a checkpoint that Excise pruned to unequal counts per layer: what it kept, and where."""
    kept = _kept_per_layer(checkpoint)
    experts = sum(tensor.elements for name, tensor in checkpoint.tensors.items() if ".experts." in name)
    return {
        "folder": str(checkpoint.folder),
        "family": str(checkpoint.config.get("model_type", "unknown")),
        "moe_layers": len(kept),
        "layers": list(kept),
        "kept_per_layer": kept,
        "top_k": first_positive(text_config(checkpoint.config), TOP_K_KEYS),
        "dtypes": _dtypes(checkpoint),
        "parameters": _parameters(checkpoint, experts),
        "size": checkpoint.size,
        "notes": list(checkpoint.notes),
        "history": in_words(steps_of(checkpoint.folder)),
    }


def _kept_per_layer(checkpoint: Checkpoint) -> dict[int, int]:
    """Decoder layer -> experts, ascending, as config.json says."""
    counts: Any = checkpoint.config[UNEQUAL]
    valid = isinstance(counts, dict) and bool(counts)
    if not valid or not all(layer.isdecimal() and positive_int(counts, layer) for layer in counts):
        raise ExciseError(
            f"{checkpoint.folder}/config.json: {UNEQUAL} should map decoder layers to numbers of experts"
        )
    return {int(layer): int(counts[layer]) for layer in sorted(counts, key=int)}


def _dtypes(checkpoint: Checkpoint) -> list[str]:
    return sorted({tensor.dtype for tensor in checkpoint.tensors.values()})


def _parameters(checkpoint: Checkpoint, experts: int) -> ParametersJson:
    every = sum(tensor.elements for tensor in checkpoint.tensors.values())
    return {"experts": experts, "elsewhere": every - experts}
