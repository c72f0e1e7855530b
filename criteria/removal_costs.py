"""What removing one more expert adds to the cost of earlier removals."""

import numpy as np
import torch
from torch import Tensor

from criteria.experiment_context import ExperimentContext
from experts.ablation import ablated, marked
from experts.arrays import Array, Marks
from experts.effects.instrument import Instrument
from experts.effects.stream import CleanForward
from experts.errors import ExciseError
from experts.memory import in_chunks
from experts.modes import Mode, Scope


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

        def work(start: int, stop: int) -> None:
            np.add(sums, self._sums(self.tokens[start:stop], candidates, gone), out=sums)

        num_windows, length = self.tokens.shape
        at_once = self.instrument.windows_at_once(self.tokens, self.batch)
        in_chunks(num_windows, at_once, work, "window")
        if not np.isfinite(sums).all():
            dtype = self.anatomy.model.dtype
            raise ExciseError(f"causal_greedy: an effect is not finite; is the model sound in {dtype}?")
        return np.where(candidates, sums / (num_windows * (length - 1)), np.nan)

    def _sums(self, tokens: Tensor, candidates: Marks, gone: Marks) -> Array:
        """The same summed over the tokens of some windows [L, E]; 0 elsewhere."""
        marks = torch.from_numpy(gone).to(tokens.device)
        removed_before = {row: in_layer for row, in_layer in enumerate(marks) if in_layer.any()}
        with ablated(self.anatomy, removed_before, Mode.REROUTE):
            clean = self.instrument.clean_forward(tokens, Scope.CORPUS)
        cost_before = self._compare_with_unpruned(clean, tokens) if self.divergence else 0.0
        sums = np.zeros(candidates.shape)
        for row, expert in np.argwhere(candidates).tolist():
            mark = marked(self.anatomy, expert)
            in_layer = removed_before[row] | mark if row in removed_before else mark
            removed = {**removed_before, row: in_layer}
            effects = self.instrument.everywhere(clean, removed, since=row)[self.divergence]
            sums[row, expert] = float(effects.sum()) - cost_before
        return sums

    def _compare_with_unpruned(self, clean: CleanForward, tokens: Tensor) -> float:
        """Let KL be taken from the unpruned model.

        Returns:
            What the earlier removals cost, summed over the tokens.
        """
        unpruned = self.instrument.clean_forward(tokens, Scope.CORPUS).log_probabilities
        assert unpruned is not None, "asked for"
        assert clean.log_probabilities is not None, "asked for"
        cost = sum(
            float((full.exp() * (full - pruned))[:-1].sum())
            for full, pruned in zip(unpruned, clean.log_probabilities, strict=True)
        )
        clean.log_probabilities = unpruned
        return cost
