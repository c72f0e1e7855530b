"""Scores and a budget make a plan."""

import numpy as np
from numpy.typing import NDArray

from criteria.budget import Budget
from criteria.scores import Scores
from experts.errors import ExciseError
from experts.plan import Plan
from experts.shape import Shape


def select(scores: Scores, budget: Budget, shape: Shape) -> Plan:
    """Keeps the highest scores. Ties, and experts without data, are broken by id: the lower id stays."""
    if scores.values.shape != (len(shape.layers), shape.experts):
        raise ExciseError(f"scores of shape {scores.values.shape} for a model with L, E = {len(shape.layers)}, {shape.experts}")
    ranked = np.where(np.isnan(scores.values), -np.inf, scores.values)
    ranked = np.where(scores.protected, np.inf, ranked)
    check_protected(scores.protected, budget, shape)
    keep = _per_layer(ranked, budget, shape) if budget.scope == "layer" else _whole_model(ranked, budget, shape)
    kept = {layer: tuple(int(i) for i in np.flatnonzero(row)) for layer, row in zip(shape.layers, keep, strict=True)}
    shape.check_kept(kept)
    budget.check_kept([len(ids) for ids in kept.values()])
    return Plan(shape.experts, kept, scores.model, scores.criterion, budget.text)


def check_protected(protected: NDArray[np.bool_], budget: Budget, shape: Shape) -> None:
    """Refuses a budget without room for the experts that stay anyway [L, E], before anything is measured."""
    layers, many = len(shape.layers), f"{int(protected.sum())}"
    most = shape.experts // budget.multiple * budget.multiple  # that a layer can keep in scope global
    counts = budget.of_layers(layers) if budget.scope == "layer" else (most,) * layers
    room = np.array(counts)[:, None] // shape.groups
    grouped = protected.reshape(layers, shape.groups, -1).sum(axis=2)
    if (grouped > room).any() or protected.sum() > budget.total:
        worst = np.unravel_index(np.argmax(grouped - room), grouped.shape)
        there = f"up to {int(grouped[worst])} where {room[worst[0], 0]} may stay"
        what = f"{many} super experts are protected, {there}"
        raise ExciseError(f"{budget.text}: {what}; keep more, or set prune.protect_super_experts: false")
    unit = max(1, budget.multiple // shape.groups)
    least = np.maximum(-(-grouped.max(axis=1) // unit), -(-budget.floor // shape.groups // unit))
    if budget.scope == "global" and least.sum() > budget.total // shape.groups // unit:
        what = f"{many} protected super experts do not fit above the floor of the other layers"
        raise ExciseError(f"{budget.text}: {what}; keep more")


def _per_layer(ranked: NDArray[np.float64], budget: Budget, shape: Shape) -> NDArray[np.bool_]:
    """The best of every group of every layer [L, E]."""
    grouped = ranked.reshape(len(ranked), shape.groups, -1)
    order = np.argsort(-grouped, axis=2, kind="stable")
    keep = np.zeros(grouped.shape, dtype=bool)
    for layer, count in enumerate(budget.of_layers(len(ranked))):
        np.put_along_axis(keep[layer], order[layer, :, : count // shape.groups], True, axis=1)
    return keep.reshape(ranked.shape)


def _whole_model(ranked: NDArray[np.float64], budget: Budget, shape: Shape) -> NDArray[np.bool_]:
    """The best of the whole model above a floor per layer [L, E].

    With router groups the unit is a rank: the r-th best of every group of a layer stay or go together, valued by their mean. Where counts
    have to divide by a number, so many neighbouring ranks are one unit.
    """
    grouped = ranked.reshape(len(ranked), shape.groups, -1)
    order = np.argsort(-grouped, axis=2, kind="stable")
    ranks = np.take_along_axis(grouped, order, axis=2)
    # [L, ranks]: a rank with a protected expert stays, one with an expert without data goes first.
    value = np.where(np.isposinf(ranks).any(axis=1), np.inf, np.where(np.isneginf(ranks), -1e300, ranks).mean(axis=1))
    unit = max(1, budget.multiple // shape.groups)
    value = value[:, : value.shape[1] // unit * unit].reshape(len(value), -1, unit).mean(axis=2)
    floor = -(-budget.floor // shape.groups // unit)
    free = budget.total // shape.groups // unit - floor * len(ranked)  # what is left when every layer has its floor
    best = np.argsort(-value[:, floor:], axis=None, kind="stable")[:free]
    count = unit * (floor + np.bincount(best // (value.shape[1] - floor), minlength=len(ranked)))  # values fall: a layer keeps its first
    keep = np.zeros(grouped.shape, dtype=bool)
    for layer, quota in enumerate(count):
        np.put_along_axis(keep[layer], order[layer, :, :quota], True, axis=1)
    return keep.reshape(ranked.shape)
