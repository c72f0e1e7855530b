"""Where the weights of decoder layers come from: they are in memory, or are read while they are used."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class LayerWeights(Protocol):
    """The weights of a model's decoder layers."""

    @property
    def streamed(self) -> bool:
        """Whether weights are read from the checkpoint every time they are used."""
        ...

    def spans(self) -> list[range]:
        """Runs of decoder layers that are in memory together, from the lowest layer to the highest."""
        ...

    def loaded(self, span: range) -> AbstractContextManager[None]:
        """Have the weights of these decoder layers in memory inside the block."""
        ...


class Resident:
    """All weights are in memory all the time.

    Args:
        num_layers: decoder layers of the model
    """

    streamed = False

    def __init__(self, num_layers: int) -> None:
        self._span = range(num_layers)

    def spans(self) -> list[range]:
        """One run of all layers."""
        return [self._span]

    @contextmanager
    def loaded(self, span: range) -> Iterator[None]:  # noqa: ARG002 - they always are
        """Nothing to do."""
        yield
