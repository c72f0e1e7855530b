"""Progressive removal: the mean ΔCE when 1, 2, … experts of a layer are gone (docs/methods.md, 4).

(a) At each token alone, the active experts in descending gate weight, as published in
https://arxiv.org/abs/2606.10703; (b) from the layer, for every token, in the order of a criterion, of its
reverse, and of chance. Shapes: J removals, N windows of W tokens, P positions, R random orders, E experts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experts.ablation import marked
from experts.anatomy import Anatomy
from experts.arrays import Array, Ids, Marks
from experts.effects.instrument import Instrument
from experts.effects.measurement import measure
from experts.effects.removal import Removal, Take
from experts.keys import key_of
from experts.memory import in_chunks
from experts.modes import Scope
from experts.sweep.record import CleanForward
from experts.team import blocks
from validate.removal_orders import Order
from validate.results import CurveJson
from validate.statistics import Interval, clustered_interval, number, permutation_p

CLIFF = 0.1  # nats (https://arxiv.org/abs/2606.10703)
MOST_WINDOWS = 8  # at once: more is not faster


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


def by_gate_weight(
    instrument: Instrument, tokens: Tensor, chosen: Mapping[int, Marks], most: int
) -> dict[int, Array]:
    """Measure ΔCE with the 1, 2, … largest active experts of a token gone, at that token alone.

    Args:
        instrument: of the model
        tokens: windows [N, W]
        chosen: row among the L MoE layers -> which positions are measured [N, W − 1]
        most: experts that are removed at most. The last active one always stays: without it a token would
            have no routed output at all.

    Returns:
        By row, ΔCE in nats [J, P], J = min(most, k − 1).
    """
    count = min(most, instrument.anatomy.shape.top_k - 1)
    team = instrument.anatomy.team
    ranges = blocks(len(tokens), 1, team.size)
    arguments = [
        (
            instrument.settings,
            tokens[start:stop].cpu(),
            {row: marks[start:stop] for row, marks in chosen.items()},
            count,
        )
        for start, stop in ranges
    ]
    parts = team.map(instrument.anatomy, _gate_weight_part, arguments)
    return {row: np.concatenate([part[row] for part in parts], axis=1) for row in chosen}


def _gate_weight_part(
    anatomy: Anatomy, settings: dict[str, Any], tokens: Tensor, chosen: Mapping[int, Marks], count: int
) -> dict[int, Array]:
    """The same for some windows. count: J."""
    instrument, num_experts = Instrument(anatomy, **settings), anatomy.shape.num_experts
    tokens = tokens.to(anatomy.device)
    deltas = {row: np.zeros((count, int(marks.sum()))) for row, marks in chosen.items()}
    if count == 0:
        return deltas
    windows = np.flatnonzero(np.any([marks.any(axis=1) for marks in chosen.values()], axis=0))

    def removals(batch: int, row: int, clean: CleanForward) -> Iterator[Removal]:
        window = windows[batch]
        if row in chosen and chosen[row][window].any():
            places = deltas[row][:, int(chosen[row][:window].sum()) :]
            yield _largest_first(clean, row, num_experts, chosen[row][window], count, places)

    measure(
        instrument,
        [tokens[window : window + 1] for window in windows],
        Scope.POSITION,
        removals,
        title="largest experts first",
        results={str(row): of_row for row, of_row in deltas.items()},
        identity=key_of({row: np.packbits(marks).tobytes().hex() for row, marks in chosen.items()}),
    )
    return deltas


def _largest_first(
    clean: CleanForward, row: int, num_experts: int, chosen: Marks, count: int, deltas: Array
) -> Removal:
    """The 1, 2, … largest experts of each position of a window removed.

    Args:
        clean: forward of the window
        row: place of the layer among the L MoE layers
        num_experts: E
        chosen: which positions [W − 1]
        count: J
        deltas: takes ΔCE in its first columns [J, …]
    """
    positions = torch.from_numpy(np.flatnonzero(chosen)).to(clean.tokens.device)
    index, weight = clean.index[row][0, positions], clean.weight[row][0, positions]  # [P, k]
    ranked = index.gather(1, torch.argsort(weight, dim=1, descending=True, stable=True))
    marks = torch.nn.functional.one_hot(ranked, num_experts).bool()  # [P, k, E]
    gone = torch.cat([marks[:, :removed].any(dim=1) for removed in range(1, count + 1)])  # [J·P, E]

    def take(delta: Tensor, _: Tensor) -> None:
        deltas[:, : len(positions)] = delta.reshape(count, -1).cpu().numpy()

    return Removal(row, {row: gone}, take, positions.repeat(count))


def by_order(
    instrument: Instrument, tokens: Tensor, orders: Mapping[int, Mapping[str, Order]], most: int
) -> dict[int, dict[str, Array]]:
    """Measure ΔCE with the first 1, 2, …, J experts of each order gone from a layer, for every token.

    Sets of experts that several orders share are measured once.

    Args:
        instrument: of the model
        tokens: windows [N, W]
        orders: row among the L MoE layers -> by name, expert ids with the first to be removed in front [E]
        most: J, how many experts are removed

    Returns:
        By row and the order's name, mean ΔCE of every window in nats [J, N].
    """
    team = instrument.anatomy.team
    size = instrument.windows_at_once(tokens, MOST_WINDOWS)
    asked = {row: dict(of_row) for row, of_row in orders.items()}
    arguments = [
        (instrument.settings, tokens[start:stop].cpu(), asked, most, size)
        for start, stop in blocks(len(tokens), size, team.size)
    ]
    parts = team.map(instrument.anatomy, _order_part, arguments)
    return {
        row: {name: np.concatenate([part[row][name] for part in parts], axis=1) for name in of_row}
        for row, of_row in orders.items()
    }


def _order_part(
    anatomy: Anatomy,
    settings: dict[str, Any],
    tokens: Tensor,
    orders: Mapping[int, Mapping[str, Order]],
    most: int,
    size: int,
) -> dict[int, dict[str, Array]]:
    """The same for some windows. size: windows per forward."""
    instrument, tokens = Instrument(anatomy, **settings), tokens.to(anatomy.device)
    shape = (most, len(tokens))
    deltas = {row: {name: np.empty(shape) for name in of_row} for row, of_row in orders.items()}

    def work(start: int, stop: int) -> None:
        parts = torch.split(tokens[start:stop], size)

        def removals(batch: int, row: int, _: CleanForward) -> Iterator[Removal]:
            first = start + batch * size
            windows = slice(first, first + len(parts[batch]))
            for gone, places in _sets(orders.get(row, {}), most).items():
                targets = [(deltas[row][name], removed) for name, removed in places]
                marks = marked(instrument.anatomy, *sorted(gone))
                yield Removal(row, {row: marks}, _kept_means(targets, windows))

        measure(
            instrument,
            parts,
            Scope.CORPUS,
            removals,
            title="experts in order",
            results={f"{row} {name}": deltas[row][name] for row in deltas for name in deltas[row]},
            identity=key_of(
                {
                    row: {name: order.tolist() for name, order in of_row.items()}
                    for row, of_row in orders.items()
                }
            ),
            most=lambda _, row: len(_sets(orders.get(row, {}), most)),
        )

    streamed = instrument.anatomy.weights.streamed
    in_chunks(len(tokens), len(tokens) if streamed else size, work, "window")
    return deltas


def _sets(orders: Mapping[str, Order], most: int) -> dict[frozenset[int], list[tuple[str, int]]]:
    """The sets of experts that orders remove -> which orders do, and after how many removals (from 0)."""
    sets: dict[frozenset[int], list[tuple[str, int]]] = {}
    for name, order in orders.items():
        for removed in range(most):
            sets.setdefault(frozenset(order[: removed + 1].tolist()), []).append((name, removed))
    return sets


def _kept_means(targets: Sequence[tuple[Array, int]], windows: slice) -> Take:
    """What keeps mean ΔCE of every window. targets: arrays [J, N], and which row of them."""

    def take(delta: Tensor, _: Tensor) -> None:
        means = delta.mean(dim=1).cpu().numpy()
        for values, removed in targets:
            values[removed, windows] = means

    return take
