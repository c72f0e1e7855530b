"""How weights were refitted, as every refitted checkpoint says it."""

import math
from dataclasses import asdict
from typing import Any, NotRequired, TypedDict

from criteria.text.sampled.settings import in_words
from criteria.text.windows import TextJson
from finetune.distill.block import ROUTER
from finetune.refit.result import SCALE, Refit, RefittedLayer


class RefittedLayerJson(TypedDict):
    """One layer of a refit, in excise_recovery.json."""

    layer: int  # decoder layer
    ridge: float | None  # λ; None = ∞, nothing was changed
    before: float  # squared distance of the pruned stream after the layer from the clean one, all tokens
    after: float  # the same with the new weights
    unchanged: list[int]  # experts that stayed as they are, because too few tokens go to them
    trained: (
        dict[str, float] | None
    )  # step whose weights were kept, loss before and after; null = not trained


class RefitJson(TypedDict):
    """How weights were refitted."""

    weights: str  # which
    form: str  # full: every entry of the down projections; scale: one factor of all of a layer
    dequantised: NotRequired[bool]  # experts, quantised in the source, are in bfloat16
    local: dict[str, Any] | None  # how layers were trained after the least squares; null = they were not
    text: TextJson  # windows that made them
    key: str  # identity of model, text and settings
    layers: list[RefittedLayerJson]
    tensors: dict[str, str]  # digest of every stored tensor that was changed, by name


class RefitProvenanceJson(TypedDict):
    """excise_recovery.json of a refitted checkpoint."""

    plan: str  # digest of the plan
    refit: RefitJson


def refit_provenance(
    refit: Refit, tensors: dict[str, str], *, dequantised: bool = False
) -> RefitProvenanceJson:
    """What excise_recovery.json of a refitted checkpoint says.

    Args:
        refit: of its plan
        tensors: as in `RefitJson`
        dequantised: as in `RefitJson`
    """
    names = {name: None for layer in refit.layers for name in layer.changed}
    content: RefitJson = {
        "weights": ", ".join(_in_words(name) for name in names),
        "form": refit.form,
        "local": None if refit.local is None else asdict(refit.local),
        "text": refit.text,
        "key": refit.key,
        "layers": [_layer_json(layer) for layer in refit.layers],
        "tensors": tensors,
    }
    if dequantised:
        content["dequantised"] = True
    return {"plan": refit.plan.digest, "refit": content}


def _in_words(name: str) -> str:
    return "rows of the router" if name == ROUTER else f"{name} of the kept experts"


def _layer_json(layer: RefittedLayer) -> RefittedLayerJson:
    return {
        "layer": layer.layer,
        "ridge": layer.ridge if math.isfinite(layer.ridge) else None,
        "before": layer.before,
        "after": layer.after,
        "unchanged": list(layer.unchanged),
        "trained": None if layer.distilled is None else asdict(layer.distilled),
    }


def refit_in_words(refit: RefitJson) -> str:
    """A sentence for the model card."""
    tokens = refit["text"]["windows"] * refit["text"]["length"]
    verb = "multiplied by one factor a layer, chosen" if refit["form"] == SCALE else "refitted"
    sampled = in_words(refit["text"].get("sampled", ()))
    how = f"{verb} by least squares on {tokens:,} tokens of text (`excise_recovery.json`){sampled}"
    sentences = [
        f"The down projections of the kept experts were {how}.",
        "Nothing was trained;" if refit["local"] is None else _training_in_words(refit["local"]),
        _others_in_words(refit.get("dequantised", False)),
    ]
    return " ".join(sentences)


def _training_in_words(local: dict[str, Any]) -> str:
    return (
        "Then the matrices of the kept experts and their rows of the routers were trained, layer by layer, "
        f"for {local['steps']} steps of {local['tokens']:,} tokens of the same text, towards the unpruned "
        "model's stream;"
    )


def _others_in_words(dequantised: bool) -> str:
    if not dequantised:
        return "all other tensors are byte-identical to the source."
    return (
        "the source stores its experts quantised, and here their matrices are in bfloat16. All tensors "
        "outside the experts and routers are byte-identical to the source."
    )
