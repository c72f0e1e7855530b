"""How much memory the parts of a network take: what is outside the decoder layers, and each of them."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from experts.memory_rule import streamed_bytes


@dataclass(frozen=True)
class Sizes:
    """Bytes in memory, as the network computes: dequantised, in its own types.

    Attributes:
        resident_bytes: outside the decoder layers
        layer_bytes: of each decoder layer
    """

    resident_bytes: int
    layer_bytes: tuple[int, ...]

    @property
    def whole(self) -> int:
        """Of the whole network."""
        return self.resident_bytes + sum(self.layer_bytes)

    @property
    def streamed(self) -> int:
        """At most, where the decoder layers come from disk one by one."""
        return streamed_bytes(self.resident_bytes, max(self.layer_bytes))


def sizes_of(network: nn.Module, layers: nn.ModuleList) -> Sizes:
    """Sizes of a network, which may be without data.

    Args:
        network: on any device, `meta` included
        layers: its decoder layers
    """
    of_layers = [_bytes(_tensors(layer)) for layer in layers]
    return Sizes(_bytes(_tensors(network)) - sum(of_layers), tuple(of_layers))


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    """Parameters and buffers; tied ones once."""
    return (*module.parameters(), *module.buffers())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
