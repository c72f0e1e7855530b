"""How weights were refitted, as every refitted checkpoint says it."""

import math
from typing import TypedDict

from criteria.text.sampled.settings import in_words
from criteria.text.windows import TextJson
from experts.inner_activations import DOWN
from finetune.refit.result import Refit


class RefittedLayerJson(TypedDict):
    """One layer of a refit, in excise_recovery.json."""

    layer: int  # decoder layer
    ridge: float | None  # λ; None = ∞, nothing was changed
    before: float  # squared distance of the pruned stream after the layer from the clean one, all tokens
    after: float  # the same with the new weights
    unchanged: list[int]  # experts that stayed as they are, because too few tokens go to them


class RefitJson(TypedDict):
    """How weights were refitted."""

    weights: str  # which
    text: TextJson  # windows that made them
    layers: list[RefittedLayerJson]


class RefitProvenanceJson(TypedDict):
    """excise_recovery.json of a refitted checkpoint."""

    plan: str  # digest of the plan
    refit: RefitJson


def refit_provenance(refit: Refit) -> RefitProvenanceJson:
    """What excise_recovery.json of a refitted checkpoint says."""
    layers: list[RefittedLayerJson] = [
        {
            "layer": layer.layer,
            "ridge": layer.ridge if math.isfinite(layer.ridge) else None,
            "before": layer.before,
            "after": layer.after,
            "unchanged": list(layer.unchanged),
        }
        for layer in refit.layers
    ]
    changed = f"{DOWN} of the kept experts"
    return {"plan": refit.plan.digest, "refit": {"weights": changed, "text": refit.text, "layers": layers}}


def refit_in_words(refit: Refit) -> str:
    """A sentence for the model card."""
    tokens = refit.text["windows"] * refit.text["length"]
    sampled = in_words(refit.text.get("sampled", ()))
    return (
        f"The down projections of the kept experts were refitted by least squares on {tokens:,} tokens "
        f"of text (`excise_recovery.json`){sampled}. Nothing was trained; all other tensors are "
        "byte-identical to the source."
    )
