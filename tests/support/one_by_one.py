"""A model in memory whose decoder layers are visited one by one, as if each were read from a checkpoint."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from experts.anatomy import Anatomy
from experts.decoder import decoder_layers
from experts.room import UNBOUNDED, Room

Visit = Callable[[range], None]


class OneByOne:
    """Weights that are always there, in spans of one layer.

    visit: called before every span; `visits` counts them.
    """

    streamed = True
    seconds = 0.0

    def __init__(self, num_layers: int, visit: Visit | None = None) -> None:
        self.num_layers, self._visit = num_layers, visit
        self.visits = 0

    def spans(self) -> list[range]:
        return [range(layer, layer + 1) for layer in range(self.num_layers)]

    @contextmanager
    def loaded(self, span: range) -> Iterator[None]:
        self.visits += 1
        if self._visit is not None:
            self._visit(span)
        yield


def one_by_one(anatomy: Anatomy, room: Room = UNBOUNDED, visit: Visit | None = None) -> Anatomy:
    """The same model, layer by layer."""
    weights = OneByOne(len(decoder_layers(anatomy)), visit)
    return replace(anatomy, weights=weights, room=room)


def visits(anatomy: Anatomy) -> int:
    """How many layers were visited so far."""
    assert isinstance(anatomy.weights, OneByOne)
    return anatomy.weights.visits
