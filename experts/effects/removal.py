"""The removal of experts as a branch of the clean forward, and what it costs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experts.ablation import ablated
from experts.decoder import Part
from experts.effects.outcome import outcomes
from experts.modes import Mode
from experts.sweep.branch import Branch
from experts.sweep.record import CleanForward

Take = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Removal:
    """Experts that are removed together, or C such interventions at single positions of one window.

    Attributes:
        row: the lowest MoE layer where something differs from the clean forward
        removed: row among the MoE layers -> experts removed there: bool [E], or token by token [B·W, E];
            at positions [C, E], intervention by intervention
        take: called with ΔCE and KL in nats, float64 [B, W − 1] each; at positions [C]. After an
            interruption it may be called once more, with the same numbers
        position: position of each intervention [C], below W − 1; None = every position
    """

    row: int
    removed: Mapping[int, Tensor]
    take: Take
    position: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class RemovalBranch(Branch):
    """A model without some experts.

    Attributes:
        removed: row among the MoE layers -> marks, as in `Removal`
        mode: what removal means
        means: mean output of every expert [L, E, H], for Mode.MEAN
        take: called with ΔCE and KL
    """

    removed: Mapping[int, Tensor]
    mode: Mode
    means: Tensor | None = None
    take: Take

    def change(self, part: Part) -> AbstractContextManager[None]:
        means = None if self.means is None else self.means[part.rows.start : part.rows.stop]
        return ablated(part.anatomy, part.of(self.removed), self.mode, means)

    def arrived(self, clean: CleanForward, logits: Tensor) -> None:
        if self.position is None:
            self.take(*window_effects(clean, logits))
            return
        known = None if clean.log_probabilities is None else clean.log_probabilities[0]
        position = self.position.to(logits.device)
        targets = clean.tokens[0].to(logits.device)[position + 1]
        loss, divergence = outcomes(logits[0], targets, known, position)
        self.take(loss - clean.losses[0, position], divergence)

    def halves(self) -> "tuple[RemovalBranch, RemovalBranch] | None":
        if self.position is None or len(self.position) < 2:
            return None
        halfway = len(self.position) // 2
        gathered = Gathered([len(self.position)], self.position.device, self.take)
        return self._copies(slice(halfway), gathered), self._copies(slice(halfway, None), gathered)

    def _copies(self, part: slice, gathered: "Gathered") -> "RemovalBranch":
        """Some of the copies of single tokens."""
        assert self.position is not None, "asked for copies alone"
        removed = {row: marks[part] for row, marks in self.removed.items()}
        return replace(self, position=self.position[part], removed=removed, take=gathered.part(part))


@dataclass(frozen=True, kw_only=True)
class PositionReplay(RemovalBranch):
    """A whole window with experts removed at one token, where copies cannot share a forward.

    Attributes:
        read: the position whose prediction is read
    """

    read: int

    def arrived(self, clean: CleanForward, logits: Tensor) -> None:
        delta, divergence = window_effects(clean, logits)
        self.take(delta[:, self.read], divergence[:, self.read])


class Gathered:
    """ΔCE and KL of interventions that are measured in parts.

    Args:
        shape: of the results; interventions are along the first axis
        device: of the results
        take: called when all parts are there
    """

    def __init__(self, shape: Sequence[int], device: torch.device, take: Take) -> None:
        self.delta = torch.empty(*shape, dtype=torch.float64, device=device)
        self.divergence = torch.empty_like(self.delta)
        self.missing, self._take = len(self.delta), take

    def part(self, part: slice) -> Take:
        """What takes the results of some interventions."""

        def take(delta: Tensor, divergence: Tensor) -> None:
            self.delta[part], self.divergence[part] = delta, divergence
            self.missing -= len(self.delta[part])
            if not self.missing:
                self._take(self.delta, self.divergence)

        return take


def only_at(tokens: Tensor, position: int, marks: Tensor) -> Tensor:
    """Marks [E] at one token of a window, none at the others [W, E]. tokens: the window [1, W]."""
    marks_of_tokens = torch.zeros(tokens.numel(), len(marks), dtype=torch.bool, device=marks.device)
    marks_of_tokens[position] = marks
    return marks_of_tokens


def window_effects(clean: CleanForward, logits: Tensor) -> tuple[Tensor, Tensor]:
    """ΔCE and KL at every position [B, W − 1], from the logits of the changed model [B, W, V]."""
    losses, divergences = [], []
    tokens = clean.tokens.to(logits.device)
    for window, of_window in enumerate(logits):
        known = None if clean.log_probabilities is None else clean.log_probabilities[window]
        positions = torch.arange(len(of_window) - 1, device=logits.device)
        loss, divergence = outcomes(of_window[:-1], tokens[window, 1:], known, positions)
        losses.append(loss)
        divergences.append(divergence)
    return torch.stack(losses) - clean.losses, torch.stack(divergences)
