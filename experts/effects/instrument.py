"""What a removal costs: ΔCE and KL(clean ‖ ablated) per position (docs/methods.md, 1.3 and 2).

It is measured in three scopes and four modes, as branches of the clean forward (experts/sweep). Every fast
path is compared with whole forwards on the model at hand before it is used. Where it does not hold (token
mixing other than masked attention, say), a plainer way takes its place, and `notes` says so.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from experts.anatomy import Anatomy
from experts.effects.fast_path import FastPath
from experts.effects.removal import Gathered, PositionReplay, Removal, RemovalBranch, only_at
from experts.effects.sizes import most_copies, most_windows
from experts.keys import key_of
from experts.modes import Mode, Scope
from experts.notes import tell
from experts.sweep.record import CleanForward


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
