"""Scores and a budget make a plan."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from criteria.budget import Budget
from criteria.scores import Scores
from experts.arrays import Array, Marks
from experts.errors import ExciseError
from experts.plan import Plan
from experts.shape import Shape

NO_ROOM = "keep more, or protect none (prune.protect_super_experts: false; in Python protect=False)"


def plan_for(scores: Scores, budget: Budget, shape: Shape) -> Plan:
    """The plan that keeps the highest scores.

    Ties, and experts without data, are broken by id: the lower id stays. The plan knows its reverse (of the
    same budget, from the negated scores) and which experts are protected.
    """
    reverse = _plan(scores.reversed, budget, shape)
    return replace(
        _plan(scores, budget, shape),
        reverse=reverse,
        protected=_protected_ids(scores, shape),
        scope=budget.scope,
        formula=scores.formula,
        seen=scores.text.tokens if scores.text else None,
    )


def _plan(scores: Scores, budget: Budget, shape: Shape) -> Plan:
    if scores.values.shape != (shape.num_layers, shape.num_experts):
        expected = f"a model with L, E = {shape.num_layers}, {shape.num_experts}"
        raise ExciseError(f"scores of shape {scores.values.shape} for {expected}")
    check_protected(scores.protected, budget, shape)
    if counts := budget.fixed(shape.num_layers):
        kept = first_kept(scores, counts, shape)
    else:
        kept = _ids(_whole_model(_ranked(scores), budget, shape), shape)
    shape.check_kept(kept)
    budget.check_kept([len(ids) for ids in kept.values()])
    return Plan(shape.num_experts, kept, scores.model, scores.criterion, budget.text)


def first_kept(scores: Scores, counts: Sequence[int], shape: Shape) -> dict[int, tuple[int, ...]]:
    """The best experts of every layer, as many from each of its router groups.

    Args:
        scores: of the model
        counts: how many each layer keeps [L]
        shape: of the model

    Returns:
        Decoder layer -> ids.
    """
    order = np.argsort(-shape.grouped(_ranked(scores)), axis=2, kind="stable")
    return _ids(shape.first_ranks(order, [shape.per_group(count) for count in counts]), shape)


def _ranked(scores: Scores) -> Array:
    """Scores [L, E] in which experts without data come last and protected ones first."""
    known = np.where(np.isnan(scores.values), -np.inf, scores.values)
    return np.where(scores.protected, np.inf, known)


def _ids(marks: Marks, shape: Shape) -> dict[int, tuple[int, ...]]:
    """Decoder layer -> ids, of marks [L, E]."""
    ids = (tuple(map(int, np.flatnonzero(row))) for row in marks)
    return dict(zip(shape.layers, ids, strict=True))


def _protected_ids(scores: Scores, shape: Shape) -> dict[int, tuple[int, ...]]:
    return {layer: marked for layer, marked in _ids(scores.protected, shape).items() if marked}


def check_protected(protected: Marks, budget: Budget, shape: Shape) -> None:
    """Refuses a budget without room for the protected experts [L, E], before anything is measured."""
    layers, many = shape.num_layers, f"{int(protected.sum())}"
    most = shape.num_experts // budget.multiple * budget.multiple  # that a layer can keep in scope global
    counts = budget.fixed(layers) or (most,) * layers
    room = np.array([shape.per_group(count) for count in counts])[:, None]
    grouped = shape.grouped(protected).sum(axis=2)  # [L, groups]
    if (grouped > room).any() or protected.sum() > budget.total:
        worst = np.unravel_index(np.argmax(grouped - room), grouped.shape)
        there = f"up to {int(grouped[worst])} where {room[worst[0], 0]} may be kept"
        what = f"{many} super experts are protected, {there}"
        raise ExciseError(f"{budget.text}: {what}; {NO_ROOM}")
    unit = max(1, shape.per_group(budget.multiple))  # ranks that go together
    floor = shape.per_group(shape.even_above(budget.floor))
    least = np.maximum(-(-grouped.max(axis=1) // unit), -(-floor // unit))
    if budget.scope == "global" and least.sum() > shape.per_group(budget.total) // unit:
        what = f"{many} protected super experts do not fit above the floor of the other layers"
        raise ExciseError(f"{budget.text}: {what}; keep more")


def _whole_model(ranked: Array, budget: Budget, shape: Shape) -> Marks:
    """The best of the whole model above a floor per layer [L, E].

    With router groups the unit is a rank: the r-th best of every group of a layer stay or go together, valued
    by their mean. Where counts have to divide by a number, so many neighbouring ranks are one unit.
    """
    grouped = shape.grouped(ranked)
    order = np.argsort(-grouped, axis=2, kind="stable")
    value = _values_of_ranks(
        np.take_along_axis(grouped, order, axis=2)
    )  # [L, E / groups], falling in every layer
    unit = max(1, shape.per_group(budget.multiple))  # neighbouring ranks that are kept or removed together
    value = value[:, : value.shape[1] // unit * unit].reshape(len(value), -1, unit).mean(axis=2)
    floor = -(-shape.per_group(shape.even_above(budget.floor)) // unit)
    free = shape.per_group(budget.total) // unit - floor * len(ranked)  # left when every layer has its floor
    best = np.argsort(-value[:, floor:], axis=None, kind="stable")[:free]
    above = np.bincount(best // (value.shape[1] - floor), minlength=len(ranked))
    return shape.first_ranks(order, unit * (floor + above))  # values fall, so a layer keeps its first ranks


def _values_of_ranks(ranks: Array) -> Array:
    """Mean over the groups [L, groups, E / groups] -> [L, E / groups].

    A rank with a protected expert stays, one with an expert without data goes first.
    """
    protected = np.isposinf(ranks).any(axis=1)
    without_data = np.where(np.isneginf(ranks), -1e300, ranks)
    return np.where(protected, np.inf, without_data.mean(axis=1))
