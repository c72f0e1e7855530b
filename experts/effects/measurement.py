"""Removals measured in one sweep over the layers: which ones, in which layer of which windows."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from experts.arrays import Array
from experts.effects.instrument import Instrument
from experts.effects.outcome import log_probabilities, token_losses
from experts.effects.removal import Removal, RemovalBranch
from experts.effects.taken import Taken
from experts.keys import key_of
from experts.modes import Scope
from experts.sweep.branch import Branch
from experts.sweep.job import Job
from experts.sweep.record import CleanForward
from experts.sweep.sweep import sweep

# Removals of a batch in a MoE layer: number of the batch, place of the layer, the clean forward.
Removals = Callable[[int, int, CleanForward], Iterable[Removal]]
# How many of them there are at most: number of the batch, place of the layer.
Most = Callable[[int, int], int]
NOTHING: Mapping[str, Array] = MappingProxyType({})


def measure(
    instrument: Instrument,
    batches: Sequence[Tensor],
    scope: Scope,
    removals: Removals,
    *,
    title: str = "removals",
    results: Mapping[str, Array] = NOTHING,
    identity: str = "",
    most: Most | None = None,
) -> None:
    """Measure removals in one sweep over the layers.

    Args:
        instrument: checked for the scope
        batches: windows [B, W]; in scope position one each
        scope: where experts are removed
        removals: what is removed in which layer, batch by batch
        title: what is measured: beside the progress bar, and in the record of an unfinished sweep
        results: arrays that removals fill. A sweep without them cannot be taken up after an interruption
        identity: what decides which experts are removed, besides title, model and windows
        most: how many removals there are at most in a layer of a batch; None = not known before
    """
    job = _Asked(instrument, batches, scope, removals, results, most)
    job.title, job.settings = title, identity
    sweep(instrument.anatomy, job)


class Measurement(Job):
    """Removals of an instrument, batch by batch.

    Args:
        instrument: of the model
        windows: of every batch [B, W]; in scope position one each
        scope: where experts are removed

    Attributes:
        copies: interventions at positions of one forward: as many as fitted into memory when it began
    """

    title = "removals"

    def __init__(self, instrument: Instrument, windows: Sequence[Tensor], scope: Scope) -> None:
        self.instrument, self.windows, self.scope = instrument, windows, scope
        self.prefix = scope is Scope.POSITION and instrument.packs
        self.copies: int | None = None
        self._taken = Taken()

    @property
    def batches(self) -> int:
        return len(self.windows)

    def clean(self, batch: int) -> CleanForward:
        return CleanForward.of(self.windows[batch], prefix=self.prefix)

    def key_of(self, *inputs: Any) -> str:
        """Identity of the measurement. inputs: what else decides it."""
        return key_of(type(self).__name__, self.instrument.identity, self.scope, *inputs)

    def removals(self, batch: int, row: int, clean: CleanForward) -> Iterable[Removal]:
        """What is removed in a MoE layer: number of the batch, place of the layer, the clean forward."""
        raise NotImplementedError

    def born(self, batch: int, row: int, clean: CleanForward) -> Iterator[Branch]:
        return self._taken.born(batch, row, self._branches(batch, row, clean))

    def _branches(self, batch: int, row: int, clean: CleanForward) -> Iterator[RemovalBranch]:
        if self.prefix and self.copies is None:
            self.copies = self.instrument.copies_at_once(clean)
        for removal in self.removals(batch, row, clean):
            yield from self.instrument.branches(removal, clean, self.copies)

    def state(self) -> dict[str, Array]:
        return {**self._taken.state(), "copies": np.array([self.copies or 0.0])}

    def restore(self, state: dict[str, Array]) -> None:
        self._taken.restore(state, self.instrument.anatomy.device)
        self.copies = int(state.pop("copies")[0]) or None

    def arrived(self, batch: int, clean: CleanForward, logits: Tensor | None) -> None:  # noqa: ARG002
        assert logits is not None, "asked for"
        clean.losses = token_losses(logits, clean.tokens).double()
        if self.instrument.probabilities:
            clean.log_probabilities = log_probabilities(logits)


class _Asked(Measurement):
    """Removals that a function names; see `measure`."""

    settings = ""

    def __init__(
        self,
        instrument: Instrument,
        windows: Sequence[Tensor],
        scope: Scope,
        asked: Removals,
        results: Mapping[str, Array],
        most: Most | None,
    ) -> None:
        super().__init__(instrument, windows, scope)
        self.asked, self.results, self.most = asked, results, most

    @property
    def identity(self) -> str:
        return self.key_of(self.settings, *self.results) if self.results else ""

    def removals(self, batch: int, row: int, clean: CleanForward) -> Iterable[Removal]:
        return self.asked(batch, row, clean)

    def most_born(self, batch: int, row: int) -> int | None:
        return None if self.most is None else self.most(batch, row)

    def state(self) -> dict[str, Array]:
        return {**super().state(), **self.results}

    def restore(self, state: dict[str, Array]) -> None:
        super().restore(state)
        for name, values in state.items():
            self.results[name][...] = values
