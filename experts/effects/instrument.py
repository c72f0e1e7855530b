"""What a removal costs: ΔCE and KL(clean ‖ ablated) per position (docs/methods.md, 1.3 and 2).

It is measured in three scopes and four modes, as branches of the clean forward (experts/sweep). Every fast
path is compared with whole forwards on the model at hand before it is used. Where it does not hold (token
mixing other than masked attention, say), a plainer way takes its place, and `notes` says so.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.effects.fast_path import FastPath
from experts.effects.outcome import log_probabilities, token_losses
from experts.effects.removal import Gathered, PositionReplay, Removal, RemovalBranch, only_at
from experts.effects.sizes import most_copies, most_windows
from experts.effects.taken import Taken
from experts.keys import key_of
from experts.modes import Mode, Scope
from experts.notes import tell
from experts.sweep.branch import Branch
from experts.sweep.job import Job
from experts.sweep.record import CleanForward
from experts.sweep.sweep import sweep

# Removals of a batch in a MoE layer: number of the batch, place of the layer, the clean forward.
Removals = Callable[[int, int, CleanForward], Iterable[Removal]]
# How many of them there are at most: number of the batch, place of the layer.
Most = Callable[[int, int], int]
NOTHING: Mapping[str, Array] = MappingProxyType({})


@dataclass
class Instrument:
    """Measures removals on one model.

    Attributes:
        anatomy: the model
        mode: what removal means
        means: mean output of every expert [L, E, H], for Mode.MEAN
        probabilities: whether KL is measured too, which keeps log p of the whole vocabulary
        packs: whether many interventions at positions share a forward (set by `check`)
        enters: whether a branch begins at the experts of its layer (set by `check`)
        at_once: interventions at positions of one forward; None = as many as fit into memory
        notes: what has to be measured the slow way, and why
    """

    anatomy: Anatomy
    mode: Mode = Mode.ZERO
    means: Tensor | None = None
    probabilities: bool = True
    packs: bool = True
    enters: bool = True
    at_once: int | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def ready(
        cls,
        anatomy: Anatomy,
        mode: Mode,
        scope: Scope,
        tokens: Tensor,
        *,
        means: Tensor | None = None,
        probabilities: bool = True,
    ) -> "Instrument":
        """A checked instrument: see `check` for `scope` and `tokens`. The user is told its notes."""
        instrument = cls(anatomy, mode, means, probabilities)
        instrument.check(tokens, scope)
        for note in instrument.notes:
            tell(note)
        return instrument

    def check(self, tokens: Tensor, scope: Scope) -> float:
        """Compare the fast path of a scope with whole forwards, on cells of the first window.

        A fast path that fails or disagrees is switched off, and leaves a note.

        Args:
            tokens: windows [N, W]
            scope: where experts will be removed

        Returns:
            The largest disagreement in nats; infinite where the fast path does not run.

        Raises:
            ExciseError: whole forwards fail, too.
        """
        comparison = FastPath(self.anatomy, scope, self.mode, self.means).compare(tokens[:1])
        if comparison.reason:
            self._fall_back(scope, comparison.reason, tokens.shape[1])
        return comparison.gap

    def _fall_back(self, scope: Scope, reason: str, length: int) -> None:
        """Measure plainly from here on. length: W, the tokens of a window."""
        if scope is Scope.POSITION:
            self.packs = False
            path, factor = "packing", f"{length // 2} times"
        else:
            self.enters = False
            path, factor = "prefix caching", "twice"
        self.notes.append(
            f"{path} {reason}: measuring with whole forwards, which takes about {factor} as long"
        )

    def windows_at_once(self, tokens: Tensor, most: int) -> int:
        """Windows [N, W] that fit into one forward with what has to be kept of it, from 1 to `most`."""
        return most_windows(self.anatomy, tokens.shape[1], most)

    def measure(
        self,
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
            batches: windows [B, W]; in scope position one each
            scope: where experts are removed
            removals: what is removed in which layer, batch by batch
            title: what is measured: beside the progress bar, and in the record of an unfinished sweep
            results: arrays that removals fill. A sweep without them cannot be taken up after an interruption
            identity: what decides which experts are removed, besides title, model and windows
            most: how many removals there are at most in a layer of a batch; None = not known before
        """
        job = _Asked(self, batches, scope, removals, results, most)
        job.title, job.settings = title, identity
        sweep(self.anatomy, job)

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the same instrument of the same model in another process, checks and all."""
        return {
            "mode": self.mode,
            "means": None if self.means is None else self.means.cpu(),
            "probabilities": self.probabilities,
            "packs": self.packs,
            "enters": self.enters,
            "at_once": self.at_once,
        }

    @property
    def identity(self) -> str:
        """What decides an effect besides the model, the windows and the removal."""
        means = "" if self.means is None else hashlib.sha256(self.means.cpu().numpy().tobytes()).hexdigest()
        return key_of(self.mode, means, self.probabilities, self.packs, self.enters)

    def branches(
        self, removal: Removal, clean: CleanForward, at_once: int | None = None
    ) -> Iterator[RemovalBranch]:
        """A removal as branches of the clean forward.

        Args:
            removal: which experts, and where
            clean: the clean forward
            at_once: interventions at positions of one forward; None = as many as fit into memory now
        """
        if removal.position is None:
            yield RemovalBranch(
                row=removal.row,
                begins_at_experts=self.enters,
                removed=removal.removed,
                mode=self.mode,
                means=self.means,
                take=removal.take,
            )
        elif self.packs:
            yield from self._copies(removal, removal.position, at_once or self.copies_at_once(clean))
        else:
            yield from self._replays(removal, removal.position, clean)

    def copies_at_once(self, clean: CleanForward) -> int:
        """Interventions at positions of one forward."""
        return self.at_once or most_copies(self.anatomy, clean)

    def _copies(self, removal: Removal, position: Tensor, size: int) -> Iterator[RemovalBranch]:
        """Copies of single tokens, so many in a forward."""
        gathered = Gathered([len(position)], position.device, removal.take)
        for start in range(0, len(position), size):
            part = slice(start, min(start + size, len(position)))
            yield RemovalBranch(
                row=removal.row,
                position=position[part],
                removed={row: marks[part] for row, marks in removal.removed.items()},
                mode=self.mode,
                means=self.means,
                take=gathered.part(part),
            )

    def _replays(self, removal: Removal, position: Tensor, clean: CleanForward) -> Iterator[RemovalBranch]:
        """The window again for every intervention."""
        gathered = Gathered([len(position)], position.device, removal.take)
        for number, at in enumerate(position.tolist()):
            marks = {
                row: only_at(clean.tokens, at, of_row[number]) for row, of_row in removal.removed.items()
            }
            yield PositionReplay(
                row=removal.row,
                begins_at_experts=False,
                removed=marks,
                mode=self.mode,
                means=self.means,
                take=gathered.part(slice(number, number + 1)),
                read=at,
            )


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
    """Removals that a function names; see `Instrument.measure`."""

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
