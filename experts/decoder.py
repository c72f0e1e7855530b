"""The list of a model's decoder layers, and parts of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import nn

from experts.anatomy import Anatomy
from experts.disk.tensors import list_of
from experts.errors import ExciseError

Value = TypeVar("Value")


def decoder_layers(anatomy: Anatomy) -> nn.ModuleList:
    """The list of decoder layers that holds the MoE blocks."""
    name = list_of(anatomy.layers[0].name)
    layers = anatomy.model.get_submodule(name)
    if not isinstance(layers, nn.ModuleList):
        raise ExciseError(f"{name}: expected the list of decoder layers, found {type(layers).__name__}")
    return layers


@dataclass(frozen=True)
class Part:
    """Some decoder layers of a model, one after another.

    Attributes:
        span: the decoder layers
        rows: which of the L MoE layers are among them
        anatomy: the model, as if these were its only MoE layers
    """

    span: range
    rows: range
    anatomy: Anatomy

    def of(self, by_row: Mapping[int, Value]) -> dict[int, Value]:
        """What belongs to these layers, by their place in this part."""
        return {row - self.rows.start: value for row, value in by_row.items() if row in self.rows}


def part_of(anatomy: Anatomy, span: range) -> Part:
    """The part of a model in these decoder layers."""
    rows = [row for row, layer in enumerate(anatomy.layers) if layer.index in span]
    inside = range(rows[0], rows[-1] + 1) if rows else range(0)
    layers = anatomy.layers[inside.start : inside.stop]
    shape = replace(anatomy.shape, layers=tuple(layer.index for layer in layers))
    return Part(span, inside, replace(anatomy, layers=layers, shape=shape))
