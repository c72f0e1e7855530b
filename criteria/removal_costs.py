"""What removing one more expert adds to the cost of earlier removals."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from criteria.experiment_context import ExperimentContext
from experts.ablation import ablated, marked
from experts.anatomy import Anatomy
from experts.arrays import Array, Marks
from experts.decoder import Part
from experts.effects.instrument import Instrument
from experts.effects.measurement import Measurement
from experts.effects.outcome import log_probabilities
from experts.effects.removal import Removal, Take
from experts.errors import ExciseError
from experts.memory import in_chunks
from experts.modes import Mode, Scope
from experts.sweep.branch import Branch
from experts.sweep.record import CleanForward
from experts.sweep.sweep import sweep
from experts.team import deal, undeal


class RemovalCosts:
    """Measures removals from every token in mode reroute, as pruning does, on top of earlier ones.

    Args:
        context: model and text
        windows: how many windows are used; 0 = all
        outcome: loss = ΔCE; kl = KL from the unpruned model, less what the earlier removals cost
    """

    def __init__(self, context: ExperimentContext, windows: int, outcome: str) -> None:
        self.anatomy, self.batch = context.anatomy, context.batch
        self.tokens = context.tokens(windows)
        self.divergence = outcome == "kl"
        self.instrument = Instrument.ready(
            self.anatomy, Mode.REROUTE, Scope.CORPUS, self.tokens, probabilities=self.divergence
        )

    def of(self, candidates: Marks, gone: Marks) -> Array:
        """Return what each candidate adds to the cost [L, E], nats per token; nan elsewhere.

        Args:
            candidates: experts to remove, one at a time [L, E]
            gone: experts that were removed before [L, E]

        Raises:
            ExciseError: an effect is not finite.
        """
        sums = np.zeros(candidates.shape)
        num_windows, length = self.tokens.shape
        at_once = self.instrument.windows_at_once(self.tokens, self.batch)
        team, streamed = self.anatomy.team, self.anatomy.weights.streamed

        def work(start: int, stop: int) -> None:
            parts = [part.cpu() for part in torch.split(self.tokens[start:stop], at_once)]
            asked = (self.instrument.settings, candidates, gone)
            added = team.map(self.anatomy, _round, [(hand, *asked) for hand in deal(parts, team.size)])
            for of_batch in undeal(added):
                np.add(sums, of_batch, out=sums)

        in_chunks(num_windows, num_windows if streamed else at_once * team.size, work, "window")
        if not np.isfinite(sums).all():
            dtype = self.anatomy.model.dtype
            raise ExciseError(f"causal_greedy: an effect is not finite; is the model sound in {dtype}?")
        return np.where(candidates, sums / (num_windows * (length - 1)), np.nan)


def _round(
    anatomy: Anatomy, parts: Sequence[Tensor], settings: dict[str, Any], candidates: Marks, gone: Marks
) -> Array:
    """What each candidate adds, summed over the tokens of every batch [batches, L, E]; 0 elsewhere."""
    windows = [part.to(anatomy.device) for part in parts]
    job = _Round(Instrument(anatomy, **settings), windows, candidates, gone)
    sweep(anatomy, job)
    return job.added


class _Round(Measurement):
    """Removals on top of earlier ones, summed over the tokens.

    Attributes:
        added: what each candidate adds to the cost of every batch [batches, L, E]; 0 elsewhere
    """

    keep_result = True  # a search that is interrupted goes through its finished rounds at once

    def __init__(
        self, instrument: Instrument, parts: Sequence[Tensor], candidates: Marks, gone: Marks
    ) -> None:
        super().__init__(instrument, parts, Scope.CORPUS)
        self.title = f"greedy round, {int(gone.sum())} experts removed"
        self.anatomy, self.divergence = instrument.anatomy, instrument.probabilities
        self.candidates, self.removed = candidates, gone
        marks = torch.from_numpy(gone).to(self.anatomy.device)
        self.gone = {row: in_layer for row, in_layer in enumerate(marks) if in_layer.any()}
        self.added = np.zeros((len(parts), *candidates.shape))
        self.cost_before = np.zeros(len(parts))

    @property
    def identity(self) -> str:
        marks = [np.packbits(marks).tobytes().hex() for marks in (self.candidates, self.removed)]
        return self.key_of(*marks)

    def around(self, batch: int, part: Part) -> AbstractContextManager[None]:  # noqa: ARG002
        return ablated(part.anatomy, part.of(self.gone), Mode.REROUTE)

    def whole(self, batch: int) -> Iterator[Branch]:
        if self.divergence:

            def keep_cost(cost: float) -> None:
                self.cost_before[batch] = cost

            yield Unpruned(row=None, is_reference=True, keep=keep_cost)

    def removals(self, batch: int, row: int, clean: CleanForward) -> Iterator[Removal]:  # noqa: ARG002
        for expert in np.flatnonzero(self.candidates[row]).tolist():
            mark = marked(self.anatomy, expert)
            in_layer = self.gone[row] | mark if row in self.gone else mark
            yield Removal(row, {**self.gone, row: in_layer}, self._sum(batch, row, expert))

    def most_born(self, batch: int, row: int) -> int:  # noqa: ARG002
        return int(self.candidates[row].sum())

    def state(self) -> dict[str, Array]:
        return {**super().state(), "added": self.added, "cost_before": self.cost_before}

    def restore(self, state: dict[str, Array]) -> None:
        super().restore(state)
        self.added[...], self.cost_before[:] = state["added"], state["cost_before"]

    def _sum(self, batch: int, row: int, expert: int) -> Take:
        def take(*effects: Tensor) -> None:
            cost = float(effects[self.divergence].sum())
            self.added[batch, row, expert] = cost - self.cost_before[batch]

        return take


@dataclass(frozen=True, kw_only=True)
class Unpruned(Branch):
    """The unpruned model, which KL is taken from: its log p replaces that of the clean forward.

    Attributes:
        keep: called with what the earlier removals cost, summed over the tokens; None = nobody asks
    """

    keep: Callable[[float], None] | None = None

    def change(self, part: Part) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()

    def arrived(self, clean: CleanForward, logits: Tensor) -> None:
        unpruned = log_probabilities(logits)
        assert clean.log_probabilities is not None, "asked for"
        if self.keep:
            cost = sum(
                float((full.exp() * (full - pruned))[:-1].sum())
                for full, pruned in zip(unpruned, clean.log_probabilities, strict=True)
            )
            self.keep(cost)
        clean.log_probabilities = unpruned
