"""What a refit comes to: new down projections, and what they are worth on the text that made them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from criteria.text.windows import TextJson
from experts.anatomy import Anatomy, MoELayer
from experts.inner_activations import DOWN
from experts.keys import key_of
from experts.plan import Plan


@dataclass(frozen=True)
class RefittedLayer:
    """One layer.

    Attributes:
        layer: decoder layer
        inner: inner units of an expert, I
        ridge: λ
        before: squared distance of the pruned stream after this layer from the clean one, over all tokens
        after: the same with the new weights, before these are rounded to the model's precision
        rows: tokens of each kept expert [K]
        unchanged: experts that stayed as they are, because too few tokens go to them
        weights: the kept experts' down projections in the model's precision, on the CPU [K, …]
    """

    layer: int
    inner: int
    ridge: float
    before: float
    after: float
    rows: tuple[int, ...]
    unchanged: tuple[int, ...]
    weights: Tensor


@dataclass(frozen=True)
class Refit:
    """A refitted plan.

    Attributes:
        plan: the experts that are kept
        layers: every MoE layer, in the order of the decoder [L]
        text: the windows that made it
        key: identity of model, plan, text and settings
        fingerprint: of the unpruned model
    """

    plan: Plan
    layers: tuple[RefittedLayer, ...]
    text: TextJson
    key: str
    fingerprint: str

    @cached_property
    def digest(self) -> str:
        """Identity of the plan with these weights."""
        return key_of(self.plan.digest, self.key)


def weights_by_name(anatomy: Anatomy, refit: Refit) -> dict[str, Tensor]:
    """The refitted weights by their names in the pruned network."""
    names = {module: name for name, module in anatomy.model.named_modules()}
    layers = zip(anatomy.layers, refit.layers, strict=True)
    return {f"{names[layer.experts]}.{DOWN}": change.weights for layer, change in layers}


@contextmanager
def swapped(layer: MoELayer, kept: tuple[int, ...], weights: Tensor) -> Iterator[None]:
    """Inside the block the kept experts of a layer have other down projections.

    Args:
        layer: the MoE layer, its weights in memory
        kept: ids of K experts
        weights: their down projections [K, …]
    """
    down: nn.Parameter = layer.experts.get_parameter(DOWN)
    ids = torch.tensor(kept, device=down.device)
    before = down.data[ids]
    down.data[ids] = weights.to(down.device)
    try:
        yield
    finally:
        down.data[ids] = before
