"""Scores and a budget make a plan. Impossible budgets are refused from sizes alone, before any calibration."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from criteria.scores import Scores
from experts.errors import ExciseError
from experts.plan import Plan

Scope = Literal["layer", "global"]


@dataclass(frozen=True)
class Shape:
    """What a budget is checked against: layers = L, experts = E, top_k = k, groups (1 = none), groups a token may use."""

    layers: tuple[int, ...]
    experts: int
    top_k: int
    groups: int = 1
    top_groups: int = 1

    @property
    def smallest(self) -> int:
        """Fewest experts a layer can keep and still route: k, and with groups enough in every group a token may use.

        Group-limited routers add up the two best experts of a group, so a group never falls below two.
        """
        if self.groups == 1:
            return self.top_k
        return self.groups * max(2, -(-self.top_k // self.top_groups))


@dataclass(frozen=True)
class Budget:
    """How much to keep. total: experts kept in the whole model; scope `layer` spreads them evenly; floor: fewest kept in a layer."""

    total: int
    scope: Scope
    floor: int
    text: str


def from_fraction(shape: Shape, fraction: float, scope: Scope, floor: int | None = None) -> Budget:
    """fraction: share of the experts to remove, in (0, 1); rounded to whole experts per layer (scope layer) or in all (global)."""
    if not 0 < fraction < 1:
        raise ExciseError(f"prune.fraction is {fraction}; it is the share of experts to remove and lies between 0 and 1, for example 0.5")
    text = f"fraction={fraction:g} scope={scope}"
    if scope == "layer":
        return from_keep(shape, shape.experts - _half_up(fraction * shape.experts), scope, floor, text)
    every = shape.experts * len(shape.layers)
    return _checked(shape, Budget(every - _half_up(fraction * every), scope, shape.smallest if floor is None else floor, text))


def from_keep(shape: Shape, keep: int, scope: Scope, floor: int | None = None, text: str = "") -> Budget:
    """keep: experts kept per layer; on average per layer in scope global."""
    text = text or f"keep={keep} scope={scope}"
    return _checked(shape, Budget(keep * len(shape.layers), scope, shape.smallest if floor is None else floor, text))


def _half_up(number: float) -> int:
    return int(np.floor(number + 0.5 + 1e-9))


def _checked(shape: Shape, budget: Budget) -> Budget:
    layers, every = len(shape.layers), shape.experts * len(shape.layers)
    keep = budget.total / layers
    if budget.total >= every:
        raise ExciseError(f"{budget.text} removes no expert: all {shape.experts} per layer would be kept; prune more")
    if keep < shape.top_k:
        raise ExciseError(
            f"{budget.text} keeps {keep:g} of {shape.experts} experts per layer, but every token uses top_k = {shape.top_k}; "
            f"keep at least {shape.smallest} (fraction ≤ {1 - shape.smallest / shape.experts:.3g})"
        )
    if keep < shape.smallest:
        raise ExciseError(
            f"{budget.text} keeps {keep:g} experts per layer in {shape.groups} router groups, of which a token uses {shape.top_groups}: "
            f"too few for top_k = {shape.top_k}; keep at least {shape.smallest}"
        )
    if shape.groups > 1 and budget.total % shape.groups:
        raise ExciseError(f"{budget.text} cannot be spread evenly over {shape.groups} router groups; {_next_even(shape, budget)}")
    if shape.groups > 1 and budget.scope == "layer" and (budget.total // layers) % shape.groups:
        raise ExciseError(
            f"{budget.text} keeps {budget.total // layers} experts per layer, uneven over {shape.groups} router groups "
            f"(a router would choose wrongly); {_next_even(shape, budget)}"
        )
    if not shape.smallest <= budget.floor <= keep:
        raise ExciseError(f"prune.floor is {budget.floor}; it must lie between {shape.smallest} and the mean number kept, {keep:g}")
    return budget


def _next_even(shape: Shape, budget: Budget) -> str:
    below = budget.total // len(shape.layers) // shape.groups * shape.groups
    fits = [keep for keep in (below, below + shape.groups) if shape.smallest <= keep < shape.experts]
    return "use " + " or ".join(f"keep: {keep} (fraction {1 - keep / shape.experts:.4g})" for keep in fits)


def select(scores: Scores, budget: Budget, shape: Shape) -> Plan:
    """Keeps the highest scores. Ties, and experts without data, are broken by id: the lower id stays."""
    if scores.values.shape != (len(shape.layers), shape.experts):
        raise ExciseError(f"scores of shape {scores.values.shape} for a model with L, E = {len(shape.layers)}, {shape.experts}")
    ranked = np.where(np.isnan(scores.values), -np.inf, scores.values)
    ranked = np.where(scores.protected, np.inf, ranked)
    _check_protected(scores, budget, shape)
    keep = _per_layer(ranked, budget, shape) if budget.scope == "layer" else _whole_model(ranked, budget, shape)
    kept = {layer: tuple(int(i) for i in np.flatnonzero(row)) for layer, row in zip(shape.layers, keep, strict=True)}
    return Plan(shape.experts, kept, scores.model, scores.criterion, budget.text)


def _check_protected(scores: Scores, budget: Budget, shape: Shape) -> None:
    room = budget.total // len(shape.layers) // shape.groups if budget.scope == "layer" else shape.experts // shape.groups
    grouped = scores.protected.reshape(len(shape.layers), shape.groups, -1).sum(axis=2)
    if (grouped > room).any() or scores.protected.sum() > budget.total:
        raise ExciseError(
            f"{budget.text}: {int(scores.protected.sum())} super experts are protected, up to {int(grouped.max())} where {room} may stay; "
            "keep more, or set prune.protect_super_experts: false"
        )


def _per_layer(ranked: NDArray[np.float64], budget: Budget, shape: Shape) -> NDArray[np.bool_]:
    """The best of every group of every layer [L, E]."""
    quota = budget.total // len(shape.layers) // shape.groups
    grouped = ranked.reshape(len(ranked), shape.groups, -1)
    order = np.argsort(-grouped, axis=2, kind="stable")
    keep = np.zeros(grouped.shape, dtype=bool)
    np.put_along_axis(keep, order[:, :, :quota], True, axis=2)
    return keep.reshape(ranked.shape)


def _whole_model(ranked: NDArray[np.float64], budget: Budget, shape: Shape) -> NDArray[np.bool_]:
    """The best of the whole model above a floor per layer [L, E].

    With router groups the unit is a rank: the r-th best of every group of a layer stay or go together, valued by their mean.
    """
    grouped = ranked.reshape(len(ranked), shape.groups, -1)
    order = np.argsort(-grouped, axis=2, kind="stable")
    sorted_scores = np.take_along_axis(grouped, order, axis=2)
    value = sorted_scores.mean(axis=1)  # [L, ranks]: mean over the groups
    floor = -(-budget.floor // shape.groups)
    value[:, :floor] = np.inf
    best = np.argsort(-value, axis=None, kind="stable")[: budget.total // shape.groups]
    count = np.bincount(best // value.shape[1], minlength=len(ranked))  # ranks are in falling order, so a layer keeps its first ones
    keep = np.zeros(grouped.shape, dtype=bool)
    for layer, quota in enumerate(count):
        np.put_along_axis(keep[layer], order[layer, :, :quota], True, axis=1)
    return keep.reshape(ranked.shape)
