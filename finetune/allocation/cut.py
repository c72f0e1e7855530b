"""Text on its way through models of which one layer is cut and refitted, and all others are whole."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from criteria.text.windows import Windows
from experts.ablation import restricted
from experts.anatomy import Anatomy
from experts.decoder import part_of
from experts.effects.outcome import log_probabilities, outcomes, token_losses
from experts.plan import Plan, whole_plan
from experts.shape import Shape
from experts.sweep.stage import Stage, State
from finetune.refit.passage import inputs_of
from finetune.refit.result import RefittedLayer, swapped


@dataclass(frozen=True)
class Cut:
    """A layer that keeps some of its experts; all other layers keep theirs.

    Attributes:
        row: place of the layer among the L MoE layers
        kept: ids that it keeps
    """

    row: int
    kept: tuple[int, ...]

    def plan(self, shape: Shape) -> Plan:
        """Of the whole model."""
        whole = whole_plan(shape.num_experts, shape.layers)
        return replace(whole, kept={**whole.kept, shape.layers[self.row]: self.kept})


@dataclass
class Rising:
    """A cut and refitted layer, and what its model makes of the text that it is judged by.

    Attributes:
        cut: what the layer keeps
        refitted: with which weights
        states: what enters the next layer, by batch
        divergence: Σ KL(unpruned ‖ cut) over the predicted tokens, in nats
        rise: Σ of the rise of the loss over them, in nats
    """

    cut: Cut
    refitted: RefittedLayer
    states: dict[int, State | None]
    divergence: float = 0.0
    rise: float = 0.0


@dataclass
class Judge:
    """Windows that no layer was refitted on, between two decoder layers of the unpruned model.

    Args:
        anatomy: the unpruned model
        windows: N windows of W tokens
        batch: windows per forward

    Attributes:
        rising: cut models that they go through as well
        states: what enters the next layer, by batch; None = what the embeddings make of the windows
    """

    anatomy: Anatomy
    windows: Windows
    batch: int
    rising: list[Rising] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stage = Stage(self.anatomy)
        starts = range(0, len(self.windows), self.batch)
        rows = [np.arange(start, min(start + self.batch, len(self.windows))) for start in starts]
        self._parts = [self.windows.select(part) for part in rows]
        self.states: dict[int, State | None] = dict.fromkeys(range(len(rows)))

    def bear(self, cut: Cut, refitted: RefittedLayer) -> None:
        """Let a cut model begin, whose layer is the next one."""
        self.rising.append(Rising(cut, refitted, dict(self.states)))

    def pass_through(self, layer: int) -> None:
        """Compute one decoder layer of the unpruned model and of all cut ones; the last one ends in sums."""
        for batch, windows in enumerate(self._parts):
            inputs = inputs_of(windows, self.anatomy)
            clean = self._run(layer, self.states[batch], inputs)
            self.states[batch] = clean if isinstance(clean, dict) else None
            judged = _Clean(clean, windows) if isinstance(clean, Tensor) else None
            for one in self.rising:
                with self._cut(one, layer):
                    left = self._run(layer, one.states[batch], inputs)
                one.states[batch] = left if isinstance(left, dict) else None
                if judged is not None and isinstance(left, Tensor):
                    divergence, rise = judged.costs(left)
                    one.divergence += divergence
                    one.rise += rise

    def costs(self, one: Rising) -> tuple[float, float]:
        """KL and rise of the loss of a cut model that has arrived, in nats per token."""
        tokens = int(self.windows.readable.sum())
        return one.divergence / tokens, one.rise / tokens

    def _run(self, layer: int, state: State | None, inputs: Mapping[str, Any]) -> State | Tensor | None:
        return self._stage.run(range(layer, layer + 1), state, dict(inputs))

    @contextmanager
    def _cut(self, one: Rising, layer: int) -> Iterator[None]:
        """Inside the block the layer that was cut is so, if it is this one."""
        found = one.refitted
        if layer != found.layer:
            yield
            return
        part = part_of(self.anatomy, range(layer, layer + 1))
        plan = one.cut.plan(self.anatomy.shape).of_layers(part.anatomy.shape.layers)
        with (
            swapped(self.anatomy.layers[one.cut.row], one.cut.kept, found.weights, found.others),
            restricted(part.anatomy, plan),
        ):
            yield


class _Clean:
    """What the unpruned model predicts in a batch.

    Args:
        logits: [B, W, V]
        windows: B windows of W tokens
    """

    def __init__(self, logits: Tensor, windows: Windows) -> None:
        self.known = log_probabilities(logits)
        self.tokens = windows.tensor(logits.device)
        self.losses = token_losses(logits, self.tokens).double()
        self.readable = torch.from_numpy(windows.readable).to(logits.device)

    def costs(self, logits: Tensor) -> tuple[float, float]:
        """Σ KL and Σ rise of the loss over the predicted tokens of a changed model [B, W, V]."""
        divergence = rise = 0.0
        positions = torch.arange(logits.shape[1] - 1, device=logits.device)
        for window, counts in enumerate(self.readable):
            targets = self.tokens[window, 1:]
            loss, apart = outcomes(logits[window, :-1], targets, self.known[window], positions)
            divergence += float(apart[counts].sum())
            rise += float((loss - self.losses[window])[counts].sum())
        return divergence, rise
