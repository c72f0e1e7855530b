"""`recon`: the kept sets whose routed outputs come closest to the whole model's, after re-routing."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from criteria.experiment_context import ExperimentContext
from criteria.fisher_pairs import slope_products
from criteria.pairs import room_of, tell_objective
from criteria.recon_search import Inputs, LayerSearch, allocated
from criteria.removal_room import Place, Room
from experts.ablation import block_inputs
from experts.arrays import Array
from experts.decoder import Part, part_of
from experts.seam import Forward, intercepted
from experts.sweep.job import Job
from experts.sweep.record import CleanForward
from experts.sweep.sweep import sweep

SEED = 20061117  # of the projections
WIDTH = 8  # of a projected output


def recon(context: ExperimentContext, tokens: int, windows: int) -> dict[str, Array]:
    """Choose what changes the layers' routed outputs least when the router chooses again.

    recon: min Σ_l σ_l² mean_t ‖y_l(kept) − y_l‖², at the clean inputs of every layer. All experts run on
    every token once; their outputs are kept as 8 Gaussian projections, whose squared length is that of the
    output in the mean. σ_l² is the mean squared slope of a sampled label's log-likelihood along the layer's
    expert outputs, per squared unit of them; it matters in scope global alone, and is measured only there
    (2.5 forwards). Greedy and swaps in every layer; scope global takes the cheapest counts of the greedy
    curves.

    Args:
        context: model, text and budget
        tokens: how many tokens are used, evenly spread; 0 = all
        windows: how many windows are used; 0 = all

    Returns:
        `score` [L, E]: place in the order of removal; kept experts come last.
        `objective` [L, 2]: the weighted error of the greedy set and after swaps, layer by layer.

    Raises:
        ExciseError: the budget and protected experts leave too few that may go, or a router with groups
            cannot choose again without some experts.
    """
    room = room_of(context)
    observation = ReconInputs(context, tokens, windows)
    sweep(context.anatomy, observation)
    scales = _scales(context, windows) if room.moves else np.ones(room.shape.num_layers)
    searches = _Searches(context, room, observation, scales)
    searches.grow()
    return searches.finish()


def _scales(context: ExperimentContext, windows: int) -> Array:
    """σ_l² [L]: Σ_i s_i² / Σ_i ‖g_i f_i‖² over the experts and tokens of a layer."""
    slopes = np.diag(slope_products(context.without_partial(), 1, windows)["pairs"])
    statistics = context.statistics
    squares = statistics.moments[..., 2, 2].sum(axis=1) / statistics.tokens.sum()
    scales: Array = slopes.reshape(len(squares), -1).sum(axis=1) / squares
    return scales


class ReconInputs(Job):
    """What enters every layer, and what every expert makes of it, of some tokens.

    They take L · tokens · (H + 8·E) numbers of memory.

    Args:
        context: model and text
        tokens: how many tokens are used; 0 = all
        windows: how many windows are used; 0 = all
    """

    title = "outputs of all experts"
    head = False
    branches = False

    def __init__(self, context: ExperimentContext, tokens: int, windows: int) -> None:
        self.anatomy = context.anatomy
        self.parts = torch.split(context.tokens(windows), context.batch)
        total = sum(part.numel() for part in self.parts)
        count = total if tokens == 0 else min(tokens, total)
        self.wanted = torch.arange(count) * total // count  # places in the text
        self.seen: dict[int, dict[int, Inputs]] = {row: {} for row in range(len(self.anatomy.layers))}

    @property
    def batches(self) -> int:
        return len(self.parts)

    def clean(self, batch: int) -> CleanForward:
        return CleanForward.of(self.parts[batch])

    @contextmanager
    def around(self, batch: int, part: Part) -> Iterator[None]:
        rows = range(len(part.rows))
        start = sum(earlier.numel() for earlier in self.parts[:batch])
        inside = (
            self.wanted[(self.wanted >= start) & (self.wanted < start + self.parts[batch].numel())] - start
        )

        with block_inputs(part.anatomy, rows) as entered:

            def watch(row: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
                block_input = entered.pop(row).reshape(len(index), -1)
                picked = inside.to(index.device)
                projected = self._of_all_experts(run, hidden[picked])
                width = projected.shape[2]
                active = projected.gather(1, index[picked][:, :, None].expand(-1, -1, width))
                target = (active * weight[picked][:, :, None].to(active.dtype)).sum(dim=1)
                self.seen[part.rows[row]][batch] = Inputs(block_input[picked].clone(), projected, target)
                return run(hidden, index, weight)

            with intercepted(part.anatomy, watch):
                yield

    def _of_all_experts(self, run: Forward, hidden: Tensor) -> Tensor:
        """Projections of every expert's output [t, E, 8], in at least float32."""
        of_experts = []
        ones = torch.ones(len(hidden), 1, dtype=hidden.dtype, device=hidden.device)
        for expert in range(self.anatomy.shape.num_experts):
            output = run(hidden, torch.full((len(hidden), 1), expert, device=hidden.device), ones)
            wide = output.to(torch.promote_types(output.dtype, torch.float32))
            of_experts.append(wide @ _projection(wide))
        return torch.stack(of_experts, dim=1)

    def inputs(self, row: int) -> Inputs:
        """Of a layer, all batches together."""
        of_batches = [self.seen[row][batch] for batch in sorted(self.seen[row])]
        return Inputs(
            torch.cat([one.hidden for one in of_batches]),
            torch.cat([one.projected for one in of_batches]),
            torch.cat([one.target for one in of_batches]),
        )


def _projection(outputs: Tensor) -> Tensor:
    """A Gaussian matrix [H, 8], the same for all layers: the mean of ‖vP‖² is ‖v‖²."""
    generator = torch.Generator().manual_seed(SEED)
    matrix = torch.randn(outputs.shape[1], WIDTH, generator=generator, dtype=torch.float64)
    return (matrix / float(np.sqrt(WIDTH))).to(outputs.dtype).to(outputs.device)


class _Searches:
    """The searches of all layers, each while its weights are there: once to grow, once to swap."""

    def __init__(self, context: ExperimentContext, room: Room, seen: ReconInputs, scales: Array) -> None:
        self.context, self.room, self.seen, self.scales = context, room, seen, scales
        self.orders: list[list[int]] = []
        self.curves: list[list[float]] = []  # errors after 0, 1, 2, … removals

    def grow(self) -> None:
        """Remove as many experts of every layer as it may lose."""
        for row, search in self._each("greedy"):
            first, size, most = self._counts(row)
            if not search.grow([first] * len(search.cells)):
                raise self.room.full("recon", first)
            for _ in range(most):
                if not search.grow([size] * len(search.cells)):
                    if not self.room.moves:
                        raise self.room.full("recon", size)
                    break  # protected experts: other layers lose more
            self.orders.append(search.order)
            self.curves.append(search.errors)

    def finish(self) -> dict[str, Array]:
        """Fix the counts, swap, and return the experiment's results."""
        counts = self._removals()
        shape = (self.room.shape.num_layers, self.room.shape.num_experts)
        later, objective = np.zeros(shape), np.zeros((shape[0], 2))
        for row, search in self._each("swaps"):
            search.order = self.orders[row]
            swapped = search.improve(counts[row])
            objective[row] = self.scales[row] * np.array([self.curves[row][counts[row]], swapped])
            self.orders[row], later[row] = search.order, self.scales[row] * search.costs()
        tell_objective("recon", objective, "swaps within layers")
        return {"score": self._score(later), "objective": objective}

    def _each(self, what: str) -> Iterator[tuple[int, LayerSearch]]:
        """Every layer's search, while its weights are there."""
        anatomy, num_experts = self.context.anatomy, self.room.shape.num_experts
        with tqdm(total=len(anatomy.layers), desc=f"recon, {what}", unit="layer", delay=2) as bar:
            for span in anatomy.weights.spans():
                part = part_of(anatomy, span)
                if not len(part.rows):
                    continue
                with anatomy.weights.loaded(span):
                    for inside, row in enumerate(part.rows):
                        places, protected = self._places(row), self.room.protected[row]
                        inputs = self.seen.inputs(row)
                        yield (
                            row,
                            LayerSearch(part.anatomy, inside, inputs, places, protected, row * num_experts),
                        )
                        bar.update()

    def _places(self, row: int) -> tuple[Place, ...]:
        each = len(self.room.places) // self.room.shape.num_layers
        return self.room.places[row * each : (row + 1) * each]

    def _counts(self, row: int) -> tuple[int, int, int]:
        """Experts that every cell loses at first, then at a time, and how many times at most."""
        place = self._places(row)[0]
        return self.room.first, place.size, place.most

    def _removals(self) -> list[int]:
        """How many experts each layer loses [L]."""
        if not self.room.moves:
            return [len(order) for order in self.orders]
        first, unit = self.room.first * self.room.shape.groups, self.room.unit
        curves = [
            [float(scale) * error for error in curve[first::unit]]
            for scale, curve in zip(self.scales, self.curves, strict=True)
        ]
        if sum(len(curve) - 1 for curve in curves) < self.room.units:
            raise self.room.full("recon", self.room.units)
        return [first + unit * units for units in allocated(curves, self.room.units)]

    def _score(self, later: Array) -> Array:
        """Place of every expert in the order of removal [L, E]; kept ones by what they would add alone."""
        steps = []  # (cost of the step, layer, place in its order)
        for row, order in enumerate(self.orders):
            marginal = self.scales[row] * np.diff(self.curves[row][: len(order) + 1])
            steps += [(cost, row, at) for at, cost in enumerate(np.maximum.accumulate(marginal))]
        score = np.full(later.shape, np.nan)
        for place, (_, row, at) in enumerate(sorted(steps)):
            score[row, self.orders[row][at]] = place
        kept = np.argwhere(np.isnan(score))
        ranked = kept[np.argsort(later[np.isnan(score)], kind="stable")]
        score[tuple(ranked.T)] = np.arange(len(steps), later.size)
        return score
