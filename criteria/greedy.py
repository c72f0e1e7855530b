"""Greedy removal: after every round the effects of what is left are measured again (CoAx, arXiv 2607.01940).

A single removal is blind to experts that back each other up: each alone is cheap, both together are not. Here the effect of an expert is
its ΔCE given everything that was removed before, in mode reroute, on the whole calibration text.
"""

import math

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from criteria.causal import removal
from criteria.experiment import REMOVAL
from criteria.experiment_context import ExperimentContext
from criteria.registry import LEAVE_ONE_OUT, resolve
from experts.ablation import ablated, marked
from experts.arrays import Array, Ids, Marks
from experts.effects.instrument import Instrument
from experts.errors import ExciseError
from experts.memory import in_chunks
from experts.modes import Mode, Scope
from experts.notes import tell

# Raise when a search finds something else from the same inputs: results of an older one are then not used.
VERSION = 2


def greedy(
    setting: ExperimentContext, step: int, rounds: int, shortlist: int, outcome: str, start: str, windows: int
) -> dict[str, Array]:
    """causal_greedy: experts in the order of their removal, the cheapest given the earlier ones first, down to the budget.

    Gives score [L, E]: place in that order, and above all of them the experts that stay, by their last estimate; trace [R, 4]: layer
    position, expert, round, and what the removal added to the cost (ΔCE, or KL from the unpruned model), nats per token.
    """
    if step < 1:
        raise ExciseError(f"causal_greedy: step is {step}; every round removes at least one expert")
    search = Search(setting, windows, outcome, start)
    size = step if rounds == 0 else search.share(rounds)
    with tqdm(total=search.left(), desc="greedy removal", unit="expert", delay=2) as bar:
        while before := search.left():
            search.round(size, shortlist)
            bar.update(before - search.left())
    return {"score": search.score(), "trace": np.array(search.trace)}


def first_estimates(setting: ExperimentContext, start: str, outcome: str, windows: int) -> Array:
    """Estimates [L, E] to begin with: lower = removed earlier. From leave-one-out, or from a criterion of observed statistics."""
    if start == LEAVE_ONE_OUT:  # usually measured before (criteria.experiment.prerequisites)
        known = setting.statistics.measured.get(
            REMOVAL.settled(start, f"outcome={outcome},windows={windows}").key
        )
        return (known or removal(setting.without_partial(), "reroute", outcome, windows))["score"].copy()
    scores = resolve(start).score(setting.statistics)
    return np.where(np.isnan(scores), -np.inf, scores)


class Search:
    """The state of a greedy removal: what is gone [L, E], the estimate of every expert [L, E], and the trace of removals.

    The estimate makes the shortlists. Leave-one-out is brought up to date by every measurement; a cheap criterion is in other units and
    stays as it is.
    """

    def __init__(self, setting: ExperimentContext, windows: int, outcome: str, start: str) -> None:
        self.setting, self.shape, self.budget = setting, setting.shape, setting.budget
        self.tokens = setting.tokens(windows)
        self.divergence, self.updates = outcome == "kl", start == LEAVE_ONE_OUT
        self.instrument = Instrument(setting.anatomy, Mode.REROUTE, probabilities=self.divergence)
        self.instrument.check(self.tokens, Scope.CORPUS)
        for note in self.instrument.notes:
            tell(note)
        kept = setting.partial.read()
        self.gone: Marks = (
            kept["gone"].astype(bool)
            if kept
            else np.zeros((len(self.shape.layers), self.shape.num_experts), dtype=bool)
        )
        self.estimate: Array = kept["estimate"] if kept else first_estimates(setting, start, outcome, windows)
        self.trace: list[list[float]] = kept["trace"].tolist() if kept else []

    def left(self) -> int:
        """Experts still to be removed."""
        return int(self.gone.size - self.budget.total - self.gone.sum())

    def share(self, rounds: int) -> int:
        """Experts that each of so many rounds removes: of a layer in scope layer, of the model in global.

        From the budget alone, never from what is left: an interrupted search has to take the same steps.
        """
        most = self.gone.size - self.budget.total
        if self.budget.scope == "layer":  # the layer that loses most
            most = self.shape.num_experts - min(self.budget.of_layers(len(self.gone)))
        return self.shape.groups * math.ceil(most / self.shape.groups / rounds)

    def room(self) -> Ids:
        """How many experts of every router group each layer can still lose [L]."""
        layers = len(self.gone)
        smallest = np.array(
            self.budget.of_layers(layers) if self.budget.scope == "layer" else (self.budget.floor,) * layers
        )
        left: Ids = self.shape.num_experts - smallest - self.gone.sum(axis=1)
        return left // self.shape.groups

    def round(self, size: int, shortlist: int) -> None:
        """Measures the candidates given what is gone, and removes the `size` cheapest, where the budget lets them go."""
        candidates = ~self.gone & ~self.setting.protected & (self.room() > 0)[:, None]
        if shortlist:
            everything = np.full(len(self.gone), self.shape.num_experts)
            candidates = self._cheapest(
                np.where(candidates, self.estimate, np.inf), max(shortlist, size), everything
            )
        effects = self._measure(candidates)
        if self.updates:
            self.estimate = np.where(candidates, effects, self.estimate)
        chosen = self._cheapest(np.where(candidates, effects, np.inf), min(size, self.left()), self.room())
        if not chosen.any():
            why = "but protected experts and the floor of every layer leave none"
            raise ExciseError(f"causal_greedy: {self.left()} more experts have to go, {why}; keep more")
        number = self.trace[-1][2] + 1 if self.trace else 0
        found = sorted(np.argwhere(chosen).tolist(), key=lambda at: float(effects[tuple(at)]))
        self.trace += [[layer, expert, number, effects[layer, expert]] for layer, expert in found]
        self.gone = self.gone | chosen
        self.setting.partial.write(
            {"gone": self.gone.astype(np.float64), "estimate": self.estimate, "trace": np.array(self.trace)}
        )

    def _cheapest(self, values: Array, size: int, room: Ids) -> Marks:
        """The experts with the lowest finite values [L, E]: `size` of every layer, or of the model, and at most `room` of a group's.

        With router groups the unit is a rank: the r-th cheapest of every group of a layer go together. So `size` is
        rounded down to a multiple of the groups, or up to one rank.
        """
        ranks = max(1, self.shape.per_group(size))
        grouped = self.shape.grouped(values)
        order = np.argsort(grouped, axis=2, kind="stable")
        units = np.take_along_axis(grouped, order, axis=2).sum(axis=1)
        count = np.minimum((units < np.inf).sum(axis=1), room)
        if self.budget.scope == "layer":
            count = np.minimum(count, ranks)
        else:
            allowed = np.where(np.arange(units.shape[1]) < count[:, None], units, np.inf)
            best = np.argsort(allowed, axis=None, kind="stable")[:ranks]
            best = best[allowed.reshape(-1)[best] < np.inf]
            count = np.bincount(best // units.shape[1], minlength=len(values))
        return self.shape.first_ranks(order, count)

    def _measure(self, candidates: Marks) -> Array:
        """What each candidate adds to the cost of what is gone [L, E], nats per token; nan elsewhere."""
        sums = np.zeros(candidates.shape)

        def work(start: int, stop: int) -> None:
            np.add(sums, self._sums(self.tokens[start:stop], candidates), out=sums)

        in_chunks(
            len(self.tokens), self.instrument.windows_at_once(self.tokens, self.setting.batch), work, "window"
        )
        if not np.isfinite(sums).all():
            dtype = self.setting.anatomy.model.dtype
            raise ExciseError(f"causal_greedy: an effect is not finite; is the model sound in {dtype}?")
        return np.where(candidates, sums / (len(self.tokens) * (self.tokens.shape[1] - 1)), np.nan)

    def _sums(self, tokens: Tensor, candidates: Marks) -> Array:
        """The same, summed over the tokens of some windows."""
        found = np.zeros(candidates.shape)
        gone = {
            layer: row for layer, row in enumerate(torch.from_numpy(self.gone).to(tokens.device)) if row.any()
        }
        with ablated(self.setting.anatomy, gone, Mode.REROUTE):
            clean = self.instrument.clean_forward(tokens, Scope.CORPUS)
        so_far = 0.0
        if self.divergence:  # from the unpruned model; what the earlier removals cost is taken off
            unpruned = self.instrument.clean_forward(tokens, Scope.CORPUS).log_probabilities
            assert unpruned is not None
            assert clean.log_probabilities is not None
            pairs = zip(unpruned, clean.log_probabilities, strict=True)
            so_far = sum(float((one.exp() * (one - other))[:-1].sum()) for one, other in pairs)
            clean.log_probabilities = unpruned
        for layer, expert in np.argwhere(candidates).tolist():
            mark = marked(self.setting.anatomy, expert)
            removed = {**gone, layer: gone[layer] | mark if layer in gone else mark}
            effect = self.instrument.everywhere(clean, removed, since=layer)[self.divergence]
            found[layer, expert] = float(effect.sum()) - so_far
        return found

    def score(self) -> Array:
        """Place in the order of removal; the experts that stay come last, by their estimate [L, E]."""
        order = [(int(layer), int(expert)) for layer, expert, *_ in self.trace]
        score = np.empty(self.gone.shape)
        for place, at in enumerate(order):
            score[at] = place
        stay = np.argwhere(~self.gone)
        ranked = stay[np.argsort(self.estimate[~self.gone], kind="stable")]
        score[tuple(ranked.T)] = np.arange(len(order), len(order) + len(ranked))
        return score
