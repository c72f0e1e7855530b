"""Greedy removal: after every round the effects of what is left are measured again (CoAx, arXiv 2607.01940).

A single removal is blind to experts that back each other up: each alone is cheap, both together are not. Here the effect of an expert is
its ΔCE given everything that was removed before, in mode reroute, on the whole calibration text.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from criteria.causal import removal
from criteria.experiment import REMOVAL
from criteria.registry import resolve
from criteria.setting import Setting
from criteria.statistics import Array
from experts.ablation import ablated, marked
from experts.effects import Instrument
from experts.errors import ExciseError
from experts.memory import in_chunks
from experts.modes import Mode, Scope

Marks = NDArray[np.bool_]


def greedy(setting: Setting, step: int, rounds: int, shortlist: int, outcome: str, start: str, windows: int) -> dict[str, Array]:
    """causal_greedy: experts in the order of their removal, the cheapest given the earlier ones first, down to the budget.

    Gives score [L, E]: place in that order, and above all of them the experts that stay, by their last estimate; trace [R, 4]: layer
    position, expert, round and measured ΔCE (nats per token) of every removal.
    """
    if step < 1:
        raise ExciseError(f"causal_greedy: step is {step}; every round removes at least one expert")
    search = Search(setting, windows, outcome, lambda: first_estimates(setting, start, outcome, windows))
    size = step if rounds == 0 else math.ceil(search.most() / rounds)
    with tqdm(total=search.left(), desc="greedy removal", unit="expert", delay=2) as bar:
        while before := search.left():
            search.round(size, shortlist)
            bar.update(before - search.left())
    return {"score": search.score(), "trace": np.array(search.trace)}


def first_estimates(setting: Setting, start: str, outcome: str, windows: int) -> Array:
    """Estimates [L, E] to begin with: lower = removed earlier. From leave-one-out, or from a criterion of observed statistics."""
    criterion = resolve(start)
    if start == "causal_removal":  # usually measured before (criteria.experiment.prerequisites)
        known = setting.statistics.measured.get(REMOVAL.settled(start, f"outcome={outcome},windows={windows}").key)
        return (known or removal(setting.without_partial(), "reroute", outcome, windows))["score"].copy()
    if criterion.measurement is not None:
        raise ExciseError(f"causal_greedy: start={start} is measured itself; use causal_removal or a criterion of observed statistics")
    scores = criterion.score(setting.statistics)
    return np.where(np.isnan(scores), -np.inf, scores)


class Search:
    """The state of a greedy removal: what is gone [L, E], the last estimate of every expert [L, E], and the trace of removals."""

    def __init__(self, setting: Setting, windows: int, outcome: str, first: Callable[[], Array]) -> None:
        self.setting, self.shape, self.budget = setting, setting.shape, setting.budget
        self.tokens = setting.tokens(setting.chosen(windows))
        self.divergence = outcome == "kl"
        self.instrument = Instrument(setting.anatomy, Mode.REROUTE, probabilities=self.divergence)
        self.instrument.check(self.tokens, Scope.CORPUS)
        kept = setting.partial.read()
        self.gone: Marks = kept["gone"].astype(bool) if kept else np.zeros((len(self.shape.layers), self.shape.experts), dtype=bool)
        self.estimate: Array = kept["estimate"] if kept else first()
        self.trace: list[list[float]] = kept["trace"].tolist() if kept else []

    def left(self) -> int:
        """Experts still to be removed."""
        return int(self.gone.size - self.budget.total - self.gone.sum())

    def most(self) -> int:
        """Experts that a single round would have to remove: of a layer in scope layer, of the whole model in scope global."""
        return self.left() // len(self.gone) if self.budget.scope == "layer" else self.left()

    def round(self, size: int, shortlist: int) -> None:
        """Measures the candidates given what is gone, and removes the `size` cheapest, where the budget lets them go."""
        candidates = ~self.gone & ~self.setting.protected
        if shortlist:
            candidates = self._cheapest(np.where(candidates, self.estimate, np.inf), max(shortlist, size), len(candidates[0]))
        effects = self._measure(candidates)
        self.estimate = np.where(candidates, effects, self.estimate)
        chosen = self._cheapest(np.where(candidates, effects, np.inf), size, None)
        number = self.trace[-1][2] + 1 if self.trace else 0
        found = sorted(np.argwhere(chosen).tolist(), key=lambda at: float(effects[tuple(at)]))
        self.trace += [[layer, expert, number, effects[layer, expert]] for layer, expert in found]
        self.gone = self.gone | chosen
        self.setting.partial.write({"gone": self.gone.astype(np.float64), "estimate": self.estimate, "trace": np.array(self.trace)})

    def _cheapest(self, values: Array, size: int, most: int | None) -> Marks:
        """The experts with the lowest values [L, E]: `size` of every layer, or of the model; most: of one layer, None = by the budget.

        With router groups the unit is a rank: the r-th cheapest of every group of a layer go together.
        """
        groups = self.shape.groups
        grouped = values.reshape(len(values), groups, -1)
        order = np.argsort(grouped, axis=2, kind="stable")
        units = np.take_along_axis(grouped, order, axis=2).sum(axis=1)
        smallest = self.budget.total // len(values) if self.budget.scope == "layer" else self.budget.floor
        room = (len(values[0]) - smallest - self.gone.sum(axis=1)) // groups if most is None else np.full(len(values), most)
        count = np.minimum(np.isfinite(units).sum(axis=1), room)
        if self.budget.scope == "layer":
            count = np.minimum(count, size)
        else:
            allowed = np.where(np.arange(units.shape[1]) < count[:, None], units, np.inf)
            size = size if most is not None else min(size, self.left())
            best = np.argsort(allowed, axis=None, kind="stable")[: max(1, size // groups)]
            best = best[np.isfinite(allowed.reshape(-1)[best])]
            count = np.bincount(best // units.shape[1], minlength=len(values))
        chosen = np.zeros(grouped.shape, dtype=bool)
        for layer, ranks in enumerate(count):
            np.put_along_axis(chosen[layer], order[layer, :, :ranks], True, axis=1)
        return chosen.reshape(values.shape)

    def _measure(self, candidates: Marks) -> Array:
        """What each candidate costs given what is gone [L, E], nats per token; nan elsewhere. KL counts from the unpruned model."""
        sums = np.zeros(candidates.shape)
        gone = torch.from_numpy(self.gone).to(self.tokens.device)

        def work(start: int, stop: int) -> None:
            found = np.zeros(candidates.shape)
            with ablated(self.setting.anatomy, {layer: row for layer, row in enumerate(gone) if row.any()}, Mode.REROUTE):
                clean = self.instrument.look(self.tokens[start:stop], Scope.CORPUS)
            if self.divergence:  # from the unpruned model, not from the one before this round
                clean.log_probabilities = self.instrument.look(self.tokens[start:stop], Scope.CORPUS).log_probabilities
            for layer, expert in np.argwhere(candidates).tolist():
                removed = {number: row for number, row in enumerate(gone) if row.any()}
                removed[layer] = gone[layer] | marked(self.setting.anatomy, expert)
                found[layer, expert] = float(self.instrument.everywhere(clean, removed, since=layer)[self.divergence].sum())
            sums.__iadd__(found)

        in_chunks(len(self.tokens), self.instrument.windows_at_once(self.tokens, self.setting.batch), work, "window")
        return np.where(candidates, sums / (len(self.tokens) * (self.tokens.shape[1] - 1)), np.nan)

    def score(self) -> Array:
        """Place in the order of removal; the experts that stay come last, by their last estimate [L, E]."""
        order = [(int(layer), int(expert)) for layer, expert, *_ in self.trace]
        score = np.empty(self.gone.shape)
        for place, at in enumerate(order):
            score[at] = place
        stay = np.argwhere(~self.gone)
        ranked = stay[np.argsort(self.estimate[~self.gone], kind="stable")]
        score[tuple(ranked.T)] = np.arange(len(order), len(order) + len(ranked))
        return score
