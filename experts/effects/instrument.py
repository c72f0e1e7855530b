"""What a removal costs: ΔCE and KL(clean ‖ ablated) per position (docs/methods.md, 1.3 and 2).

It is measured in three scopes and four modes. Every fast path is compared with plain replay on the model at
hand before it is used. Where it does not hold (token mixing other than masked attention, say), plain replay
takes its place, and `notes` says so.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from experts.anatomy import Anatomy
from experts.effects.fast_path import FastPath
from experts.effects.packing import packed
from experts.effects.replay import replay, replay_position
from experts.effects.sizes import most_copies, most_windows
from experts.effects.stream import CleanForward, clean_forward, entered
from experts.memory import in_chunks
from experts.modes import Mode, Scope
from experts.notes import tell


@dataclass
class Instrument:
    """Measures removals on one model.

    Attributes:
        anatomy: the model
        mode: what removal means
        means: mean output of every expert [L, E, H], for Mode.MEAN
        probabilities: whether KL is measured too, which keeps log p of the whole vocabulary
        packs: whether many interventions at positions share a forward (set by `check`)
        enters: whether a forward can begin at the layer of the removal (set by `check`)
        at_once: interventions of one forward, known after the first measurement
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
        """Compare the fast path of a scope with plain replay, on cells of the first window.

        A fast path that fails or disagrees is switched off, and leaves a note.

        Args:
            tokens: windows [N, W]
            scope: where experts will be removed

        Returns:
            The largest disagreement in nats; infinite where the fast path does not run.

        Raises:
            ExciseError: replay itself fails.
        """
        comparison = FastPath(self.anatomy, scope, self.mode, self.means).compare(tokens[:1])
        if comparison.reason:
            self._fall_back(scope, comparison.reason, tokens.shape[1])
        return comparison.gap

    def _fall_back(self, scope: Scope, reason: str, length: int) -> None:
        """Use plain replay from here on. length: W, the tokens of a window."""
        if scope is Scope.POSITION:
            self.packs = False
            path, factor = "packing", f"{length // 2} times"
        else:
            self.enters = False
            path, factor = "prefix caching", "twice"
        self.notes.append(
            f"{path} {reason}: measuring with whole forwards, which takes about {factor} as long"
        )

    def clean_forward(self, tokens: Tensor, scope: Scope) -> CleanForward:
        """One plain forward of windows [B, W], with what this scope needs of it."""
        return clean_forward(self.anatomy, tokens, scope is Scope.POSITION and self.packs, self.probabilities)

    def windows_at_once(self, tokens: Tensor, most: int) -> int:
        """Windows [N, W] that fit into one forward with what has to be kept of it, from 1 to `most`."""
        return most_windows(self.anatomy, tokens.shape[1], most)

    def at_positions(
        self, clean: CleanForward, position: Tensor, removed: Mapping[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Measure C interventions at single positions of one window.

        Interventions that begin at higher layers are cheaper: call once per layer.

        Args:
            clean: forward of the unmodified window, B = 1
            position: position of each intervention [C], below W − 1
            removed: row among the MoE layers -> experts that each intervention removes, bool [C, E]

        Returns:
            ΔCE and KL in nats, float64 [C] each.
        """
        delta = torch.empty(len(position), dtype=torch.float64, device=position.device)
        divergence = torch.empty_like(delta)

        def measure(start: int, stop: int) -> None:
            part = slice(start, stop)
            marks_of_part = {row: marks[part] for row, marks in removed.items()}
            loss, divergence[part] = self._at_positions(clean, position[part], marks_of_part)
            delta[part] = loss - clean.losses[0, position[part]]

        size = self.at_once or most_copies(self.anatomy, clean)
        self.at_once = in_chunks(len(position), size, measure, "intervention")
        return delta, divergence

    def _at_positions(
        self, clean: CleanForward, position: Tensor, removed: Mapping[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Loss and KL [C] of interventions that fit into one forward."""
        if self.packs:
            return packed(self.anatomy, clean, position, removed, self.mode, self.means)
        losses, divergences = [], []
        for number, t in enumerate(position):
            marks_here = {row: marks[number] for row, marks in removed.items()}
            loss, divergence = self.replay_position(clean, int(t), marks_here)
            losses.append(loss)
            divergences.append(divergence)
        return torch.stack(losses), torch.stack(divergences)

    def replay_position(
        self, clean: CleanForward, position: int, removed: Mapping[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Loss and KL at one token, by a whole forward of the window (`experts.effects.replay`)."""
        return replay_position(self.anatomy, clean, position, removed, self.mode, self.means)

    def everywhere(
        self, clean: CleanForward, removed: Mapping[int, Tensor], since: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Measure the removal of experts at every position.

        Args:
            clean: forward of the windows without the removal
            removed: row among the MoE layers -> experts removed there, bool [E]
            since: the lowest row where `removed` differs from what `clean` was run with; by default the
                lowest
                row of `removed`

        Returns:
            ΔCE and KL at every position in nats, float64 [B, W − 1] each.
        """
        start = self.anatomy.layers[min(removed) if since is None else since].index
        inside = entered(self.anatomy, clean, start) if self.enters else nullcontext()
        losses, divergences = replay(self.anatomy, clean, removed, self.mode, self.means, inside)
        return losses - clean.losses, divergences
