"""`fisher_pairs`: the set whose removal changes the model's predictions least, to second order.

Every token and expert has a multiplier α of its own gate weight. With labels drawn from the model, the slopes
s_i(t) = g_i f_i · ∂L/∂y of one backward give F_ij = Σ_t s_i(t) s_j(t) / T over all L·E experts, and pᵀFp / 2
is the second-order estimate of KL(unpruned ‖ without P) in mode zero (docs/methods.md 1.8).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from criteria.experiment import pair_slopes
from criteria.experiment_context import ExperimentContext
from criteria.gate_slopes import Slopes, of_batches
from criteria.pairs import room_of, tell_objective
from criteria.quadratic_search import cheapest_set
from criteria.sampled_labels import label_losses, uniforms
from criteria.slope_record import SlopeWork
from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.keys import key_of

BLOCK = 4096  # tokens whose slopes are laid out over all experts at once


def fisher_pairs(context: ExperimentContext, draws: int, windows: int) -> dict[str, Array]:
    """Choose the set that costs least by the Fisher information of the model's own predictions.

    Pairs of experts in different layers count in both scopes. Costs 2.5 plain forwards on
    the demo, 5.9 with four draws.

    Args:
        context: model, text and budget
        draws: labels drawn per token
        windows: how many windows are used; 0 = all

    Returns:
        `score` [L, E]: place in the order of removal; kept experts come last.
        `objective` [1, 2]: pᵀFp of the greedy set and after swaps.
    """
    room = room_of(context)
    measured = context.statistics.measured.get(pair_slopes(draws, windows).key)
    pairs = (measured or slope_products(context.without_partial(), draws, windows))["pairs"]
    found = cheapest_set(pairs, room, "fisher_pairs")
    objective = np.array([[found.greedy, found.swapped]])
    tell_objective("fisher_pairs", objective, f"{found.swaps} swaps")
    return {"score": found.score, "objective": objective}


def slope_products(context: ExperimentContext, draws: int, windows: int) -> dict[str, Array]:
    """Measure F; it serves every budget.

    Returns:
        `pairs` [L·E, L·E], a mean over tokens and draws, in nats.
    """
    tokens = context.tokens(windows)
    shape = context.anatomy.shape
    total = len(context.anatomy.layers) * shape.num_experts
    pairs = torch.zeros(total, total, dtype=torch.float64)
    numbers = uniforms(tokens.cpu(), draws)
    for slopes in of_batches(context, [tokens, numbers], _slopes, (), "slopes of sampled labels"):
        _add_products(pairs, torch.from_numpy(slopes), shape.num_experts)
    return {"pairs": (pairs / (tokens.numel() * draws)).numpy()}


def _add_products(pairs: Tensor, slopes: Tensor, num_experts: int) -> None:
    """Add Σ_t s sᵀ.

    Args:
        pairs: sums [L·E, L·E], changed in place
        slopes: of a batch [1 + draws, L, T, k]: expert ids, then the slopes of every draw
        num_experts: E
    """
    index, *of_draws = slopes
    num_layers, count, k = index.shape
    column = (torch.arange(num_layers)[:, None, None] * num_experts + index.long()).transpose(0, 1)
    for drawn in of_draws:
        for start in range(0, count, BLOCK):
            rows = slice(start, start + BLOCK)
            columns = column[rows].reshape(-1, num_layers * k)
            laid_out = torch.zeros(len(columns), len(pairs), dtype=torch.float64)
            laid_out.scatter_(1, columns, drawn.transpose(0, 1)[rows].reshape(-1, num_layers * k).double())
            pairs += laid_out.T @ laid_out


def _slopes(anatomy: Anatomy, batches: Sequence[tuple[Tensor, Tensor]]) -> list[Array]:
    """Expert ids and slopes of every token: [1 + draws, L, B·W, k] of every batch, float32.

    Args:
        anatomy: the model
        batches: windows [B, W] and their uniform numbers [B, draws, W]
    """
    tokens = [ids.to(anatomy.device) for ids, _ in batches]
    draws, num_layers, k = batches[0][1].shape[1], len(anatomy.layers), anatomy.shape.top_k
    results = [torch.zeros(1 + draws, num_layers, ids.numel(), k) for ids in tokens]

    def ones(_: int, index: Tensor) -> tuple[Tensor, Tensor]:
        factor = torch.ones(index.shape, device=index.device, requires_grad=True)
        return factor, factor

    def losses(batch: int, logits: Tensor) -> Tensor:
        return label_losses(logits, batches[batch][1])

    def totals(_: int, drawn: Tensor) -> list[Tensor]:
        return [of_draw.sum() for of_draw in drawn]

    def add(batch: int, row: int, index: Tensor, slopes: Sequence[Tensor]) -> None:
        results[batch][0, row] = index.float().cpu()
        for draw, slope in enumerate(slopes, 1):
            results[batch][draw, row] = slope.float().cpu()

    work = SlopeWork("slopes of sampled labels", key_of("sampled labels", draws), results)
    Slopes(anatomy, tokens, losses).measure(ones, totals, add, work)
    return [of_batch.numpy() for of_batch in results]
