"""Scores and a budget make a plan."""

import numpy as np
from numpy.typing import NDArray

from criteria.budget import Budget, Shape
from criteria.scores import Scores
from experts.errors import ExciseError
from experts.plan import Plan


def select(scores: Scores, budget: Budget, shape: Shape) -> Plan:
    """Keeps the highest scores. Ties, and experts without data, are broken by id: the lower id stays."""
    if scores.values.shape != (len(shape.layers), shape.experts):
        raise ExciseError(f"scores of shape {scores.values.shape} for a model with L, E = {len(shape.layers)}, {shape.experts}")
    ranked = np.where(np.isnan(scores.values), -np.inf, scores.values)
    ranked = np.where(scores.protected, np.inf, ranked)
    _check_protected(scores, budget, shape)
    keep = _per_layer(ranked, budget, shape) if budget.scope == "layer" else _whole_model(ranked, budget, shape)
    if (keep < scores.protected).any():
        what = f"{int(scores.protected.sum())} protected super experts do not fit above the floor of the other layers"
        raise ExciseError(f"{budget.text}: {what}; keep more")
    kept = {layer: tuple(int(i) for i in np.flatnonzero(row)) for layer, row in zip(shape.layers, keep, strict=True)}
    shape.check_kept(kept)
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
    ranks = np.take_along_axis(grouped, order, axis=2)
    # [L, ranks]: a rank with a protected expert stays, one with an expert without data goes first.
    value = np.where(np.isposinf(ranks).any(axis=1), np.inf, np.where(np.isneginf(ranks), -1e300, ranks).mean(axis=1))
    floor = -(-budget.floor // shape.groups)
    free = budget.total // shape.groups - floor * len(ranked)  # what is left when every layer has its floor
    best = np.argsort(-value[:, floor:], axis=None, kind="stable")[:free]
    count = floor + np.bincount(best // (value.shape[1] - floor), minlength=len(ranked))  # values fall, so a layer keeps its first ranks
    keep = np.zeros(grouped.shape, dtype=bool)
    for layer, quota in enumerate(count):
        np.put_along_axis(keep[layer], order[layer, :, :quota], True, axis=1)
    return keep.reshape(ranked.shape)
