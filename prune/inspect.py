"""`excise inspect`: what a checkpoint is made of, from headers and configuration alone. No torch."""

from typing import Any

from criteria.budget import from_fraction
from experts.disk.configuration import TOP_K_KEYS, UNEQUAL, positive_int, text_config
from experts.disk.find import find_model
from experts.disk.layout import Layout, lay_out
from experts.disk.shards import Checkpoint
from experts.errors import ExciseError
from prune.checkpoint.history import in_words, steps_of

FRACTIONS = (0.25, 0.5, 0.75)


def look_at(name: str) -> dict[str, Any]:
    """What a model is made of, wherever it is; one on the hub is named with the commit that was read."""
    model = find_model(name)
    return {**inspected(model.headers()), "folder": model.pinned}


def inspected(checkpoint: Checkpoint) -> dict[str, Any]:
    """All that `excise inspect` shows. `history`: how the checkpoint came about, where Excise wrote it."""
    found = describe_unequal(checkpoint) if UNEQUAL in checkpoint.config else describe(lay_out(checkpoint))
    return {**found, "notes": checkpoint.notes, "history": in_words(steps_of(checkpoint.folder))}


def describe_unequal(checkpoint: Checkpoint) -> dict[str, Any]:
    """Of a checkpoint that Excise pruned with unequal counts per layer: what it kept, and where."""
    config, counts = text_config(checkpoint.config), checkpoint.config[UNEQUAL]
    if (
        not isinstance(counts, dict)
        or not counts
        or not all(positive_int(counts, layer) and layer.isdecimal() for layer in counts)
    ):
        raise ExciseError(
            f"{checkpoint.folder}/config.json: {UNEQUAL} should map decoder layers to numbers of experts"
        )
    kept = {int(layer): int(count) for layer, count in counts.items()}
    inside = sum(tensor.elements for name, tensor in checkpoint.tensors.items() if ".experts." in name)
    every = sum(tensor.elements for tensor in checkpoint.tensors.values())
    return {
        "folder": str(checkpoint.folder),
        "family": str(checkpoint.config.get("model_type", "unknown")),
        "moe_layers": len(kept),
        "layers": tuple(sorted(kept)),
        "kept_per_layer": dict(sorted(kept.items())),
        "top_k": next((k for key in TOP_K_KEYS if (k := positive_int(config, key))), None),
        "dtypes": sorted({tensor.dtype for tensor in checkpoint.tensors.values()}),
        "parameters": {"experts": inside, "elsewhere": every - inside},
        "size": checkpoint.size,
    }


def describe(layout: Layout) -> dict[str, Any]:
    """Family, sizes and savings. Parameters are stored elements; sizes are bytes of tensors."""
    checkpoint, shape = layout.checkpoint, layout.shape
    every = sum(tensor.elements for tensor in checkpoint.tensors.values())
    savings: list[dict[str, Any]] = []
    for fraction in FRACTIONS:
        try:
            keep = from_fraction(shape, fraction, "layer").total // len(shape.layers)
            saved = sum(layout.bytes_per_expert.values()) * (layout.shape.num_experts - keep) + sum(
                tensor.size for tensor in layout.predicting
            )
            savings.append(
                {"fraction": fraction, "keep": keep, "size": checkpoint.size - saved, "saved": saved}
            )
        except ExciseError as error:
            savings.append({"fraction": fraction, "impossible": str(error)})
    return {
        "folder": str(checkpoint.folder),
        "family": layout.family,
        "moe_layers": len(layout.shape.layers),
        "layers": layout.shape.layers,
        "experts": layout.shape.num_experts,
        "top_k": layout.shape.top_k,
        "groups": layout.shape.groups,
        "groups_per_token": layout.shape.top_groups,
        "shared_experts": layout.num_shared_experts,
        "dtypes": sorted({tensor.dtype for tensor in checkpoint.tensors.values()}),
        "parameters": {"experts": layout.expert_parameters, "elsewhere": every - layout.expert_parameters},
        "size": checkpoint.size,
        "multi_token_prediction_tensors": len(layout.predicting),
        "savings": savings,
    }
