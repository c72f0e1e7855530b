"""Where the weights of decoder layers come from: memory, or disk each time they are needed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class LayerWeights(Protocol):
    """The weights of a network's decoder layers."""

    @property
    def streamed(self) -> bool:
        """Whether weights are read again and again, so that a forward through all layers at once is not to be
        had.
        """

    @property
    def seconds(self) -> float:
        """How long work has waited for weights so far."""

    def spans(self) -> list[range]:
        """Runs of decoder layers that are in memory together, in order; all layers, each in one of them."""

    def loaded(self, span: range) -> AbstractContextManager[None]:
        """Inside the block the weights of these decoder layers are in memory."""


class Resident:
    """Weights that are in memory from the beginning to the end.

    Attributes:
        num_layers: decoder layers, with experts or without
    """

    streamed = False
    seconds = 0.0

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers

    def spans(self) -> list[range]:
        """One run of all layers."""
        return [range(self.num_layers)]

    @contextmanager
    def loaded(self, span: range) -> Iterator[None]:
        """Nothing is to be done."""
        assert span.stop <= self.num_layers, "a span of this network"
        yield
