"""Progressive removal: the mean ΔCE when 1, 2, … experts of a layer are gone (docs/methods.md, 4).

(a) At each token alone, the active experts in descending gate weight, as published in
https://arxiv.org/abs/2606.10703; (b) from the layer, for every token, in the order of a criterion, of its
reverse, and of chance. Shapes: J removals, N windows of W tokens, P positions, R random orders, E experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experts.arrays import Array, Ids, Marks
from experts.effects.instrument import Instrument
from experts.effects.stream import CleanForward
from experts.memory import in_chunks
from experts.modes import Scope
from validate.results import CurveJson
from validate.statistics import Interval, clustered_interval, number, permutation_p

CLIFF = 0.1  # nats (https://arxiv.org/abs/2606.10703)
MOST_WINDOWS = 8  # at once: more is not faster
Order = Ids  # expert ids, the first to be removed in front


@dataclass(frozen=True)
class Curve:
    """ΔCE after 1, 2, …, J removals in one layer, in nats.

    Attributes:
        layer: decoder layer index
        order: what is removed first
        mean: mean ΔCE [J]
        interval: of the mean, over documents [J]
        p: one-sided, that random orders do as well after as many removals [J]; nan where not compared with
            them
        p_worse: one-sided, that random orders do as badly [J]; nan where not compared with them
        sd: standard deviation over orders, where the curve is the mean of several [J], else empty
    """

    layer: int
    order: str
    mean: tuple[float, ...]
    interval: tuple[Interval, ...]
    p: tuple[float, ...]
    p_worse: tuple[float, ...]
    sd: tuple[float, ...] = ()

    @property
    def cliff(self) -> int | None:
        """The first number of removals with a mean above 0.1 nats; None without one."""
        for removed, mean in enumerate(self.mean, 1):
            if mean > CLIFF:
                return removed
        return None

    def to_json(self) -> CurveJson:
        return {
            "layer": self.layer,
            "order": self.order,
            "mean": list(self.mean),
            "interval": [interval.to_json() for interval in self.interval],
            "p": [number(p) for p in self.p],
            "p_worse": [number(p) for p in self.p_worse],
            "sd": list(self.sd),
            "cliff": self.cliff,
        }


def curve(
    layer: int,
    order: str,
    deltas: Array,
    weights: Array,
    clusters: Ids,
    chance: Array | None = None,
) -> Curve:
    """Sum up raw ΔCE to a curve.

    Args:
        layer: decoder layer index
        order: what was removed first
        deltas: ΔCE of every window or position after each removal [J, N], nats
        weights: tokens of each column [N]
        clusters: document of each column [N]
        chance: mean ΔCE of random orders [R, J], nats; None = not compared with them
    """
    means = tuple(float(np.average(values, weights=weights)) for values in deltas)
    intervals = tuple(clustered_interval(values, weights, clusters) for values in deltas)
    if chance is None:
        nothing = (float("nan"),) * len(means)
        return Curve(layer, order, means, intervals, nothing, nothing)
    p = tuple(permutation_p(mean, chance[:, place]) for place, mean in enumerate(means))
    p_worse = tuple(permutation_p(-mean, -chance[:, place]) for place, mean in enumerate(means))
    return Curve(layer, order, means, intervals, p, p_worse)


def by_gate_weight(instrument: Instrument, tokens: Tensor, row: int, chosen: Marks, most: int) -> Array:
    """Measure ΔCE with the 1, 2, … largest active experts of a token gone, at that token alone.

    Args:
        instrument: of the model
        tokens: windows [N, W]
        row: place of the layer among the L MoE layers
        chosen: which positions are measured [N, W − 1]
        most: experts that are removed at most. The last active one always stays: without it a token would
            have no routed output at all.

    Returns:
        ΔCE in nats [J, P], J = min(most, k − 1).
    """
    removals = min(most, instrument.anatomy.shape.top_k - 1)
    if removals == 0:
        return np.zeros((0, int(chosen.sum())))
    deltas = []
    for window in np.flatnonzero(chosen.any(axis=1)):
        clean = instrument.clean_forward(tokens[window : window + 1], Scope.POSITION)
        positions = torch.from_numpy(np.flatnonzero(chosen[window])).to(tokens.device)
        marks = _largest_first(instrument, clean, row, positions, removals)
        delta, _ = instrument.at_positions(clean, positions.repeat(removals), {row: marks})
        deltas.append(delta.reshape(removals, -1).cpu().numpy())
    return np.concatenate(deltas, axis=1)


def _largest_first(
    instrument: Instrument, clean: CleanForward, row: int, positions: Tensor, removals: int
) -> Tensor:
    """Marks of the 1, 2, … largest experts of each position, removal by removal [J·P, E]."""
    index, weight = clean.index[row][0, positions], clean.weight[row][0, positions]  # [P, k]
    ranked = index.gather(1, torch.argsort(weight, dim=1, descending=True, stable=True))
    marks = torch.nn.functional.one_hot(ranked, instrument.anatomy.shape.num_experts).bool()  # [P, k, E]
    return torch.cat([marks[:, :removed].any(dim=1) for removed in range(1, removals + 1)])


def by_order(
    instrument: Instrument, tokens: Tensor, row: int, orders: Mapping[str, Order], most: int
) -> dict[str, Array]:
    """Measure ΔCE with the first 1, 2, …, J experts of each order gone from a layer, for every token.

    Sets of experts that several orders share are measured once.

    Args:
        instrument: of the model
        tokens: windows [N, W]
        row: place of the layer among the L MoE layers
        orders: by name, expert ids with the first to be removed in front [E]
        most: J, how many experts are removed

    Returns:
        By the order's name, mean ΔCE of every window in nats [J, N].
    """
    deltas = {name: np.empty((most, len(tokens))) for name in orders}

    def work(start: int, stop: int) -> None:
        clean = instrument.clean_forward(tokens[start:stop], Scope.CORPUS)
        measured: dict[frozenset[int], Array] = {}
        for name, order in orders.items():
            for removed in range(1, most + 1):
                gone = frozenset(order[:removed].tolist())
                if gone not in measured:
                    measured[gone] = _without(instrument, clean, row, sorted(gone))
                deltas[name][removed - 1, start:stop] = measured[gone]

    in_chunks(len(tokens), instrument.windows_at_once(tokens, MOST_WINDOWS), work, "window")
    return deltas


def _without(instrument: Instrument, clean: CleanForward, row: int, experts: Sequence[int]) -> Array:
    """Mean ΔCE of every window without these experts."""
    marks = torch.zeros(instrument.anatomy.shape.num_experts, dtype=torch.bool, device=clean.tokens.device)
    marks[list(experts)] = True
    delta, _ = instrument.everywhere(clean, {row: marks})
    means: Array = delta.mean(dim=1).cpu().numpy()
    return means


def orders_of(
    scores: Mapping[str, Array], num_experts: int, draws: int, seed: Sequence[int]
) -> dict[str, Order]:
    """Return in which order the experts of a layer go: by every criterion, by its reverse, and at random.

    Args:
        scores: scores of the layer's experts by criterion [E]. The lowest goes first; an expert without score
            (nan) goes before it, and last when reversed. Ties go by id.
        num_experts: E
        draws: random orders
        seed: of the random orders

    Returns:
        Orders [E] by name: "<criterion>", "reversed:<criterion>", "random <number>".
    """
    orders: dict[str, Order] = {}
    for name, values in scores.items():
        order = np.argsort(np.where(np.isnan(values), -np.inf, values), kind="stable")
        orders[name] = order
        orders[f"reversed:{name}"] = order[::-1].copy()
    rng = np.random.default_rng(seed)
    for draw in range(draws):
        orders[f"random {draw}"] = rng.permutation(num_experts)
    return orders
