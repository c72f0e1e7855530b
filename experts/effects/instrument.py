"""What a removal costs: ΔCE and KL(clean ‖ ablated) per position (docs/methods.md, 1.3 and 2).

It is measured in three scopes and four modes, as branches of the clean forward (experts/sweep). Every fast
path is compared with whole forwards on the model at hand before it is used. Where it does not hold (token
mixing other than masked attention, say), a plainer way takes its place, and `notes` says so.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from experts.anatomy import Anatomy
from experts.effects.fast_path import FastPath
from experts.effects.outcome import log_probabilities, token_losses
from experts.effects.removal import Gathered, PositionReplay, Removal, RemovalBranch, only_at
from experts.effects.sizes import most_copies, most_windows
from experts.modes import Mode, Scope
from experts.notes import tell
from experts.sweep.branch import Branch
from experts.sweep.job import Job
from experts.sweep.record import CleanForward
from experts.sweep.sweep import sweep

# Removals of a batch in a MoE layer: number of the batch, place of the layer, the clean forward.
Removals = Callable[[int, int, CleanForward], Iterable[Removal]]


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

    def measure(self, batches: Sequence[Tensor], scope: Scope, removals: Removals) -> None:
        """Measure removals in one sweep over the layers.

        Args:
            batches: windows [B, W]; in scope position one each
            scope: where experts are removed
            removals: what is removed in which layer, batch by batch
        """
        sweep(self.anatomy, _Asked(self, batches, scope, removals))

    def branches(self, removal: Removal, clean: CleanForward) -> Iterator[Branch]:
        """A removal as branches of the clean forward."""
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
            yield from self._copies(removal, removal.position, clean)
        else:
            yield from self._replays(removal, removal.position, clean)

    def _copies(self, removal: Removal, position: Tensor, clean: CleanForward) -> Iterator[Branch]:
        """Copies of single tokens, as many in a forward as fit into memory."""
        size = self.at_once or most_copies(self.anatomy, clean)
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

    def _replays(self, removal: Removal, position: Tensor, clean: CleanForward) -> Iterator[Branch]:
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
    """

    title = "removals"

    def __init__(self, instrument: Instrument, windows: Sequence[Tensor], scope: Scope) -> None:
        self.instrument, self.windows = instrument, windows
        self.prefix = scope is Scope.POSITION and instrument.packs

    @property
    def batches(self) -> int:
        return len(self.windows)

    def clean(self, batch: int) -> CleanForward:
        return CleanForward.of(self.windows[batch], prefix=self.prefix)

    def removals(self, batch: int, row: int, clean: CleanForward) -> Iterable[Removal]:
        """What is removed in a MoE layer: number of the batch, place of the layer, the clean forward."""
        raise NotImplementedError

    def born(self, batch: int, row: int, clean: CleanForward) -> Iterable[Branch]:
        for removal in self.removals(batch, row, clean):
            yield from self.instrument.branches(removal, clean)

    def arrived(self, batch: int, clean: CleanForward, logits: Tensor | None) -> None:  # noqa: ARG002
        assert logits is not None, "asked for"
        clean.losses = token_losses(logits, clean.tokens).double()
        if self.instrument.probabilities:
            clean.log_probabilities = log_probabilities(logits)


class _Asked(Measurement):
    """Removals that a function names."""

    def __init__(
        self, instrument: Instrument, windows: Sequence[Tensor], scope: Scope, asked: Removals
    ) -> None:
        super().__init__(instrument, windows, scope)
        self.asked = asked

    def removals(self, batch: int, row: int, clean: CleanForward) -> Iterable[Removal]:
        return self.asked(batch, row, clean)
