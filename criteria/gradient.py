"""First-order attributions: what one gradient says about the removal of every expert (docs/methods.md 1.2).

Every gate weight is multiplied by α_{l,e} = 1. −∂L/∂α estimates the effect of taking α to 0 (mode zero). A
gradient cannot see re-routing: `excise compare` prints its rank agreement with real removals.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from criteria.experiment_context import ExperimentContext
from criteria.gate_slopes import Slopes, summed, token_count, zeros
from criteria.slope_record import SlopeWork
from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.expert_sums import add_by_expert
from experts.keys import key_of

SEED = 20061117  # of the random signs


def first_order(context: ExperimentContext, windows: int) -> dict[str, Array]:
    """Measure the slope of the loss in every expert's gate weight.

    gradient: −∂L/∂α, L the mean cross-entropy over T tokens; positive and negative slopes cancel.
    gradient_abs: Σ_t |g_e f_e(x_t) · ∂L/∂y_t|; they do not.

    Every token and expert has a multiplier α of its own. The sum of their gradients is ∂L/∂α. Costs 3.4 plain
    forwards. Sources: attribution patching, https://arxiv.org/abs/2403.00745; INFORM,
    https://arxiv.org/abs/2602.04291

    Args:
        context: model and text
        windows: how many windows are used; 0 = all

    Returns:
        `gradient` and `gradient_abs` [L, E].
    """
    tokens = context.tokens(windows)
    signed, absolute = summed(context, [tokens], _slopes_at, (1.0,), "gradient") / token_count(tokens)
    return {"gradient": signed, "gradient_abs": absolute}


def _slopes_at(anatomy: Anatomy, batches: Sequence[tuple[Tensor]], alpha: float) -> list[Array]:
    """−slope and |slope| of the loss in the multipliers α, summed over tokens: [2, L, E] of every batch."""
    tokens = [ids.to(anatomy.device) for (ids,) in batches]
    signed, absolute = ([zeros(anatomy) for _ in batches] for _ in range(2))

    def constant(_: int, index: Tensor) -> tuple[Tensor, Tensor]:
        factor = torch.full(index.shape, alpha, device=index.device, requires_grad=True)
        return factor, factor

    def add(batch: int, row: int, index: Tensor, slopes: Sequence[Tensor]) -> None:
        device = anatomy.device
        expert, slope = index.reshape(-1).to(device), slopes[0].reshape(-1).double().to(device)
        add_by_expert(signed[batch][row], expert, -slope)
        add_by_expert(absolute[batch][row], expert, slope.abs())

    work = SlopeWork(f"gradient, gates × {alpha:g}", key_of("slopes", alpha), [*signed, *absolute])
    Slopes(anatomy, tokens).measure(constant, lambda _, losses: [losses.sum()], add, work)
    return [torch.stack(both).cpu().numpy() for both in zip(signed, absolute, strict=True)]


def integrated(context: ExperimentContext, steps: int, windows: int) -> dict[str, Array]:
    """Integrate the slope while all gate weights go to 0 together.

    integrated: −∫ ∂L/∂α_e dα along the straight path of all α from 1 to 0, by the midpoint rule. Complete: as
    steps grow, the sum over all experts becomes L(α = 0) − L(α = 1), but for the jumps where a token changes
    its experts on the way, which no gradient sees. Costs 18 plain forwards at 8 steps and grows with steps.
    Source: integrated gradients, https://arxiv.org/abs/1703.01365

    Args:
        context: model and text
        steps: points of the path
        windows: how many windows are used; 0 = all

    Returns:
        `integrated` [L, E].
    """
    tokens = context.tokens(windows)
    sums = np.zeros((len(context.anatomy.layers), context.anatomy.shape.num_experts))
    for step in range(steps):
        alpha = (step + 0.5) / steps
        title = f"integrated gradient {step + 1}/{steps}"
        sums += summed(context, [tokens], _slopes_at, (alpha,), title)[0]
    return {"integrated": sums / (steps * token_count(tokens))}


def fisher(context: ExperimentContext, probes: int, windows: int) -> dict[str, Array]:
    """Estimate the diagonal of the empirical Fisher information.

    fisher: Σ_t (∂L_t/∂α)², L_t the loss at token t. Exact would be one backward per token. With random signs
    ε_t the expectation of (∂ Σ_t ε_t L_t / ∂α)² is the same sum, window by window, so `probes` backwards per
    window are enough. Their relative error is about √(2 / (windows · probes)). Costs 5.2 plain forwards at 4
    probes and grows with probes.

    Args:
        context: model and text
        probes: sets of random signs; they are seeded
        windows: how many windows are used; 0 = all

    Returns:
        `fisher` [L, E].
    """
    tokens = context.tokens(windows)
    signs = _random_signs(probes, tokens)  # [N, probes, W − 1]
    return {"fisher": summed(context, [tokens, signs], _squared_slopes, (), "fisher") / probes}


def _random_signs(probes: int, tokens: Tensor) -> Tensor:
    """+1 or −1 for every token with a next one [N, probes, W − 1]."""
    num_windows, length = tokens.shape
    generator = torch.Generator().manual_seed(SEED)
    bits = torch.randint(0, 2, (probes, num_windows, length - 1), generator=generator)
    return bits.transpose(0, 1) * 2 - 1


def _squared_slopes(anatomy: Anatomy, batches: Sequence[tuple[Tensor, Tensor]]) -> list[Array]:
    """(∂ Σ_t ε_t L_t / ∂α)², summed over probes and windows: [L, E] of every batch.

    Args:
        anatomy: the model
        batches: windows [B, W] and their signs ε [B, probes, W − 1]
    """
    tokens = [ids.to(anatomy.device) for ids, _ in batches]
    num_experts, length = anatomy.shape.num_experts, tokens[0].shape[1]
    squares = [zeros(anatomy) for _ in batches]

    def per_window(_: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """One α per window, because windows do not see each other."""
        num_windows = len(index) // length
        alpha = torch.ones(num_windows, num_experts, device=index.device, requires_grad=True)
        window = torch.arange(num_windows, device=index.device).repeat_interleave(length)[:, None]
        return alpha, alpha[window, index]

    def signed(batch: int, losses: Tensor) -> list[Tensor]:
        signs = batches[batch][1].to(losses.device)
        return [(losses * sign).sum() for sign in signs.unbind(dim=1)]

    def add(batch: int, row: int, _: Tensor, slopes: Sequence[Tensor]) -> None:
        for slope in slopes:
            squares[batch][row] += slope.double().square().sum(dim=0).to(anatomy.device)

    digest = hashlib.sha256(b"".join(signs.numpy().tobytes() for _, signs in batches)).hexdigest()
    work = SlopeWork("fisher", key_of("squared slopes", digest), squares)
    Slopes(anatomy, tokens).measure(per_window, signed, add, work)
    return [of_batch.cpu().numpy() for of_batch in squares]
