"""`excise inspect`: what a checkpoint is made of, from headers and configuration alone. No torch."""

from typing import Any

from criteria.budget import from_fraction
from experts.errors import ExciseError
from prune.layout import Layout, lay_out
from prune.remote import find_model

FRACTIONS = (0.25, 0.5, 0.75)


def look_at(name: str) -> dict[str, Any]:
    """What a model is made of, wherever it is; one on the hub is named with the commit that was read."""
    model = find_model(name)
    return {**describe(lay_out(model.headers())), "folder": model.pinned}


def describe(layout: Layout) -> dict[str, Any]:
    """Family, sizes and savings. Parameters are stored elements; sizes are bytes of tensors."""
    checkpoint, shape = layout.checkpoint, layout.shape
    every = sum(tensor.elements for tensor in checkpoint.tensors.values())
    savings: list[dict[str, Any]] = []
    for fraction in FRACTIONS:
        try:
            keep = from_fraction(shape, fraction, "layer").total // len(shape.layers)
            saved = sum(layout.bytes_per_expert.values()) * (layout.experts - keep) + sum(tensor.size for tensor in layout.predicting)
            savings.append({"fraction": fraction, "keep": keep, "size": checkpoint.size - saved, "saved": saved})
        except ExciseError as error:
            savings.append({"fraction": fraction, "impossible": str(error)})
    return {
        "folder": str(checkpoint.folder),
        "family": layout.family,
        "moe_layers": len(layout.layers),
        "layers": layout.layers,
        "experts": layout.experts,
        "top_k": layout.top_k,
        "groups": layout.groups,
        "groups_per_token": layout.top_groups,
        "shared_experts": layout.shared,
        "dtypes": sorted({tensor.dtype for tensor in checkpoint.tensors.values()}),
        "parameters": {"experts": layout.expert_parameters, "elsewhere": every - layout.expert_parameters},
        "size": checkpoint.size,
        "multi_token_prediction_tensors": len(layout.predicting),
        "savings": savings,
    }
