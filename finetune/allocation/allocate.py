"""Counts per layer, as users and commands choose them: by what is left after the refit of each layer."""

from dataclasses import replace

import numpy as np

from criteria.budget import Budget
from criteria.scores import Scores
from criteria.selection import check_protected, first_kept, plan_for
from criteria.text.windows import Windows
from experts.ablation import check_untouched
from experts.arguments import check_kind
from experts.arrays import Array
from experts.errors import ExciseError
from experts.model import Model
from finetune.allocation.choice import cheapest
from finetune.allocation.costs import Costs, measure_cuts
from finetune.allocation.cut import Cut
from finetune.allocation.grid import Grid
from finetune.allocation.result import Allocation
from finetune.refit.request import Request
from finetune.refit.result import FULL

CHOSEN = "counts=refitted"  # what the budget of such a plan says


def allocate(
    model: Model,
    scores: Scores,
    text: Windows,
    *,
    budget: Budget,
    form: str = FULL,
    ridge: float | None = None,
    fewest: int = 16,
    batch: int = 8,
) -> Allocation:
    """Choose how many experts each layer keeps by what is left after its refit, not by raw scores.

    For every MoE layer l and count c, the layer alone is cut to its c highest scores, refitted on one half of
    the text, and judged on the other half, with all other layers whole:

        D(l, c) = mean over tokens of KL(unpruned ‖ cut and refitted),

    and the counts with the lowest Σ D(l, c_l) are taken that keep the budget's total. The sum takes layers as
    if their damage added up. KL needs no labels: it is never below 0, and steadier on little text than the
    rise of the loss, which it equals on average where the model is calibrated. At most 8 counts of a layer
    are measured, those between are interpolated (docs/methods.md, 9). Costs L·M refits of one layer, and as
    many forwards of half the text from it to the top; the solving can take longer than these.

    Args:
        model: a loaded model, resident or streamed
        scores: of `criteria.score`, by any criterion
        text: windows to refit on and to judge by, such as those of calibration; never those of a test
        budget: of `criteria.budget_for`, in scope global
        form: as in `finetune.refit_experts`
        ridge: as in `finetune.refit_experts`
        fewest: as in `finetune.refit_experts`
        batch: windows per forward

    Returns:
        The allocation: `plan`, `counts`, and what was measured.

    Raises:
        ExciseError: the budget is not in scope global, no counts meet it, the text has fewer than 3 windows,
            the scores are of another model, or a layer cannot be refitted.

    Example:
        >>> import criteria, experts, finetune
        >>> model = experts.load("demo")
        >>> text = criteria.windows(model, stdlib="code", split="calibration", sequences=4, length=64)
        >>> budget = criteria.budget_for(model, keep=15, scope="global", floor=14)
        >>> scores = criteria.score(model, "reap_sum", text)
        >>> allocation = finetune.allocate(model, scores, text, budget=budget, ridge=1.0)
        >>> sum(allocation.counts.values()), min(allocation.counts.values()) >= 14
        (90, True)
    """
    request = Request(text, ridge, fewest, batch, form).of_model(model)
    check_kind("scores", scores, Scores, "the scores of one criterion, of criteria.score")
    check_kind("budget", budget, Budget, "a budget of criteria.budget_for")
    if scores.model != model.fingerprint:
        raise ExciseError("scores: they are of another model; score this one")
    check_untouched(model.anatomy)
    grid = grid_of(scores, budget, model)
    costs = measure_cuts(model.anatomy, cuts_of(scores, grid), request)
    return allocated(scores, grid, costs)


def grid_of(scores: Scores, budget: Budget, model: Model) -> Grid:
    """The counts that a budget allows. Raises ExciseError where there is nothing to choose."""
    grid = Grid(model.shape, budget, scores.protected)
    grid.check()
    check_protected(scores.protected, budget, model.shape)
    return grid


def cuts_of(scores: Scores, grid: Grid) -> list[Cut]:
    """What is measured, layer by layer."""
    shape = grid.shape
    kept = {count: first_kept(scores, [count] * shape.num_layers, shape) for count in grid.measured}
    return [
        Cut(row, kept[count][layer])
        for row, layer in enumerate(shape.layers)
        for count in grid.measured
        if grid.allows(row, count)
    ]


def allocated(scores: Scores, grid: Grid, costs: Costs) -> Allocation:
    """The cheapest counts of a budget, from the costs of `cuts_of`."""
    budget, shape = grid.budget, grid.shape
    divergence, rise = (_table(grid, values) for values in (costs.divergence, costs.rise))
    every = grid.of_all(divergence)
    counts = cheapest(every, grid.counts, budget.total)
    by_scores = plan_for(scores, budget, shape).counts
    chosen = replace(budget, counts=counts, text=f"{budget.text} {CHOSEN}")
    return Allocation(
        plan=plan_for(scores, chosen, shape),
        by_scores=by_scores,
        measured=grid.measured,
        divergence=divergence,
        rise=rise,
        expected=_sum(every, grid, counts),
        expected_by_scores=_sum(every, grid, tuple(by_scores[layer] for layer in shape.layers)),
    )


def _table(grid: Grid, values: Array) -> Array:
    """Costs of cuts as a table [L, M]; nan where protected experts do not fit."""
    places = [
        (row, place)
        for row in range(grid.shape.num_layers)
        for place, count in enumerate(grid.measured)
        if grid.allows(row, count)
    ]
    table: Array = np.full((grid.shape.num_layers, len(grid.measured)), np.nan)
    for (row, place), value in zip(places, values, strict=True):
        table[row, place] = value
    return table


def _sum(every: Array, grid: Grid, counts: tuple[int, ...]) -> float:
    """Of the costs [L, C] of these counts [L]."""
    return float(sum(every[row, grid.counts.index(count)] for row, count in enumerate(counts)))
