"""A checkpoint in parts: what is outside the decoder layers, and each of them."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from experts.disk.shards import Stored

SHARE = 0.1  # of a part; weights are converted one by one from this size on, smaller ones together


@dataclass(frozen=True)
class Part:
    """Tensors of a checkpoint that are in memory together.

    Attributes:
        groups: those that are read and converted at a time. What becomes one weight is in one group, the
            largest weights come first: the copies that conversion makes are then as few as can be.
    """

    groups: tuple[tuple[Stored, ...], ...]


@dataclass(frozen=True)
class Parts:
    """A checkpoint, taken apart.

    Attributes:
        outside: the decoder layers
        layers: decoder layer -> its part
    """

    outside: Part
    layers: Mapping[int, Part]


def partition(
    tensors: Mapping[str, Stored], targets: Mapping[str, str], weights: Mapping[str, Tensor], layers: str
) -> Parts:
    """Take a checkpoint apart.

    Args:
        tensors: of the checkpoint, by name
        targets: tensor -> the weight of the network that it becomes
        weights: of the network, for their sizes
        layers: name of the network's list of decoder layers

    Returns:
        What is outside the decoder layers, and each of them.
    """
    outside: dict[str, list[Stored]] = {}
    inside: dict[int, dict[str, list[Stored]]] = {}
    for name, target in targets.items():
        layer = layer_of(target, layers)
        sources = outside if layer is None else inside.setdefault(layer, {})
        sources.setdefault(target, []).append(tensors[name])
    parts = {layer: _part(sources, weights) for layer, sources in inside.items()}
    return Parts(_part(outside, weights), parts)


def layer_of(weight: str, layers: str) -> int | None:
    """The decoder layer of a weight: 3 of `model.layers.3.mlp.gate.weight`; None outside of them."""
    if not weight.startswith(f"{layers}."):
        return None
    number = weight.removeprefix(f"{layers}.").partition(".")[0]
    return int(number) if number.isdecimal() else None


def _part(sources: Mapping[str, list[Stored]], weights: Mapping[str, Tensor]) -> Part:
    """A part, from the sources of each of its weights."""
    sizes = {target: weights[target].nbytes for target in sources}
    enough = SHARE * sum(sizes.values())
    groups: list[tuple[Stored, ...]] = []
    group: list[Stored] = []
    size = 0
    for target in sorted(sources, key=lambda target: -sizes[target]):
        group += sources[target]
        size += sizes[target]
        if size >= enough:
            groups.append(tuple(group))
            group, size = [], 0
    if group:
        groups.append(tuple(group))
    return Part(tuple(groups))
