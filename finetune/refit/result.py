"""What a refit comes to: new weights, and what they are worth on the text that made them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from criteria.text.windows import TextJson
from experts.anatomy import Anatomy, MoELayer
from experts.inner_activations import DOWN
from experts.keys import key_of
from experts.plan import Plan
from finetune.distill.block import ROUTER, rows_of
from finetune.distill.settings import Local
from finetune.distill.train import Distilled

# What the least squares may change.
FULL = "full"  # every entry of the down projections
SCALE = "scale"  # one factor of all down projections of a layer


@dataclass(frozen=True)
class RefittedLayer:
    """One layer.

    Attributes:
        layer: decoder layer
        inner: inner units of an expert, I
        ridge: λ
        before: squared distance of the pruned stream after this layer from the clean one, over all tokens
        after: the same after the least squares, before weights are rounded to the model's precision
        rows: tokens of each kept expert [K]
        unchanged: experts that stayed as they are, because too few tokens go to them
        weights: the kept experts' down projections in the model's precision, on the CPU [K, …]
        distilled: what training came to; None = the layer was not trained
        others: what training changed beside them, by name, ROUTER for the router's rows [K, …]
    """

    layer: int
    inner: int
    ridge: float
    before: float
    after: float
    rows: tuple[int, ...]
    unchanged: tuple[int, ...]
    weights: Tensor
    distilled: Distilled | None = None
    others: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def changed(self) -> dict[str, Tensor]:
        """All that is changed, by name in the experts module, or ROUTER [K, …]."""
        return {DOWN: self.weights, **self.others}


@dataclass(frozen=True)
class Refit:
    """A refitted plan.

    Attributes:
        plan: the experts that are kept
        layers: every MoE layer, in the order of the decoder [L]
        text: the windows that made it
        key: identity of model, text and settings; with the plan's, `digest` is that of the weights
        fingerprint: of the unpruned model
        local: how layers were trained after the least squares; None = they were not
        form: FULL or SCALE
    """

    plan: Plan
    layers: tuple[RefittedLayer, ...]
    text: TextJson
    key: str
    fingerprint: str
    local: Local | None = None
    form: str = FULL

    @cached_property
    def digest(self) -> str:
        """Identity of the plan with these weights."""
        return key_of(self.plan.digest, self.key)


def weights_by_name(anatomy: Anatomy, refit: Refit) -> dict[str, Tensor]:
    """The refitted weights by their names in the pruned network."""
    names = {module: name for name, module in anatomy.model.named_modules()}
    found = {}
    for layer, change in zip(anatomy.layers, refit.layers, strict=True):
        for name, weights in change.changed.items():
            experts = f"{names[layer.experts]}.{name}"
            found[f"{names[layer.router]}.weight" if name == ROUTER else experts] = weights
    return found


@contextmanager
def swapped(
    layer: MoELayer, kept: tuple[int, ...], weights: Tensor, others: Mapping[str, Tensor] | None = None
) -> Iterator[None]:
    """Inside the block the kept experts of a layer have other weights.

    Args:
        layer: the MoE layer, its weights in memory; the router may have the kept rows alone
        kept: ids of K experts
        weights: their down projections [K, …]
        others: what else is changed, as in `RefittedLayer.others` [K, …]
    """
    before = []
    for name, values in {DOWN: weights, **(others or {})}.items():
        rows = rows_of(layer, name).data
        ids = torch.tensor(kept if len(rows) > len(kept) else range(len(kept)), device=rows.device)
        before.append((rows, ids, rows[ids]))
        rows[ids] = values.to(rows)  # of another precision: as a written file would be read
    try:
        yield
    finally:
        for rows, ids, old in before:
            rows[ids] = old
