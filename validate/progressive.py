"""Progressive removal, layer by layer (METHODS 4): the mean ΔCE when 1, 2, … experts of a layer are gone.

(a) at each token alone, the active experts in descending gate weight, as published; (b) from the layer, for every token, in the order of
a criterion, of its reverse, and of chance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from criteria.statistics import Array
from experts.effects.instrument import Instrument
from experts.effects.stream import CleanForward
from experts.memory import in_chunks
from experts.modes import Scope
from validate.statistics import Interval, clustered_interval, permutation_p

CLIFF = 0.1  # nats: the first number of removed experts with a larger mean ΔCE (arXiv 2606.10703)
MOST_WINDOWS = 8
Order = NDArray[np.int64]


@dataclass(frozen=True)
class Curve:
    """mean, interval: of ΔCE after 1, 2, … removals [J]; cliff: the first number with a mean above 0.1 nats, None without one.

    p, p_worse: one-sided, that random orders do as well, as badly after as many removals [J]; nan where the curve is not compared with
    them. sd: over the orders, where the curve is the mean of several.
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
        return next((number for number, value in enumerate(self.mean, 1) if value > CLIFF), None)


def curve(
    layer: int,
    order: str,
    rows: Array,
    weights: Array,
    clusters: NDArray[np.int64],
    chance: Array | None = None,
) -> Curve:
    """The curve of raw rows [J, N]; chance: the means of random orders [R, J]."""
    means = tuple(float(np.average(row, weights=weights)) for row in rows)
    intervals = tuple(clustered_interval(row, weights, clusters) for row in rows)
    nothing = (float("nan"),) * len(means)
    if chance is None:
        return Curve(layer, order, means, intervals, nothing, nothing)
    p = tuple(permutation_p(mean, chance[:, number]) for number, mean in enumerate(means))
    worse = tuple(permutation_p(-mean, -chance[:, number]) for number, mean in enumerate(means))
    return Curve(layer, order, means, intervals, p, worse)


def by_gate_weight(
    instrument: Instrument, tokens: Tensor, layer: int, chosen: NDArray[np.bool_], removed: int
) -> Array:
    """ΔCE [J, P] at the chosen positions (bool [N, W − 1]) with the 1, 2, … largest active experts of the token gone, there alone.

    J = min(removed, k − 1): without its last expert a token would have no routed output at all.
    """
    anatomy = instrument.anatomy
    most = min(removed, anatomy.shape.top_k - 1)
    if most == 0:
        return np.zeros((0, int(chosen.sum())))
    found = []
    for number in np.flatnonzero(chosen.any(axis=1)):
        clean = instrument.clean_forward(tokens[number : number + 1], Scope.POSITION)
        position = torch.from_numpy(np.flatnonzero(chosen[number])).to(tokens.device)
        index, weight = (part[layer][0, position] for part in (clean.index, clean.weight))
        ranked = index.gather(1, torch.argsort(weight, dim=1, descending=True, stable=True))
        marks = torch.nn.functional.one_hot(ranked, anatomy.shape.num_experts).bool()
        gone = [marks[:, :count].any(dim=1) for count in range(1, most + 1)]
        delta, _ = instrument.at_positions(clean, position.repeat(most), {layer: torch.cat(gone)})
        found.append(delta.reshape(most, -1).cpu().numpy())
    return np.concatenate(found, axis=1)


def by_order(
    instrument: Instrument, tokens: Tensor, layer: int, orders: Mapping[str, Order], removed: int
) -> dict[str, Array]:
    """Mean ΔCE of every window [J, N] with the first 1, 2, … experts of each order gone for every token. Equal sets are measured once."""
    rows = {name: np.empty((removed, len(tokens))) for name in orders}

    def work(start: int, stop: int) -> None:
        clean = instrument.clean_forward(tokens[start:stop], Scope.CORPUS)
        known: dict[frozenset[int], Array] = {}
        for name, order in orders.items():
            for count in range(1, removed + 1):
                gone = frozenset(order[:count].tolist())
                if gone not in known:
                    known[gone] = _without(instrument, clean, layer, sorted(gone))
                rows[name][count - 1, start:stop] = known[gone]

    in_chunks(len(tokens), instrument.windows_at_once(tokens, MOST_WINDOWS), work, "window")
    return rows


def _without(instrument: Instrument, clean: CleanForward, layer: int, experts: Sequence[int]) -> Array:
    marks = torch.zeros(instrument.anatomy.shape.num_experts, dtype=torch.bool, device=clean.tokens.device)
    marks[list(experts)] = True
    found: Array = instrument.everywhere(clean, {layer: marks})[0].mean(dim=1).cpu().numpy()
    return found


def orders_of(scores: Mapping[str, Array], experts: int, draws: int, seed: Sequence[int]) -> dict[str, Order]:
    """Which expert goes first, second, …: by every criterion's scores [E] of a layer from the lowest, reversed, and at random.

    An expert without score (nan) goes first, and last when reversed. Ties go by id.
    """
    found: dict[str, Order] = {}
    for name, values in scores.items():
        order = np.argsort(np.where(np.isnan(values), -np.inf, values), kind="stable")
        found |= {name: order, f"reversed:{name}": order[::-1].copy()}
    rng = np.random.default_rng(seed)
    return found | {f"random {draw}": rng.permutation(experts) for draw in range(draws)}
