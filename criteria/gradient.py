"""First-order attributions: what one gradient says about the removal of every expert (docs/methods.md 1.2).

Every gate weight is multiplied by α_{l,e} = 1. −∂L/∂α estimates the effect of taking α to 0 (mode zero). A
gradient cannot see re-routing: `excise compare` prints its rank agreement with real removals.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from criteria.experiment_context import ExperimentContext
from criteria.gate_slopes import Slopes, each_slope, over_windows, token_count, zeros
from experts.arrays import Array
from experts.expert_sums import add_by_expert

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
    signed, absolute = zeros(context), zeros(context)

    def add(row: int, index: Tensor, slope: Tensor) -> None:
        expert, slopes = index.reshape(-1).to(signed.device), slope.reshape(-1).double().to(signed.device)
        add_by_expert(signed[row], expert, -slopes)
        add_by_expert(absolute[row], expert, slopes.abs())

    tokens = context.tokens(windows)
    each_slope(context, tokens, 1.0, add, "gradient")
    count = token_count(tokens)
    return {
        "gradient": (signed / count).cpu().numpy(),
        "gradient_abs": (absolute / count).cpu().numpy(),
    }


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
    sums = zeros(context)

    def add(row: int, index: Tensor, slope: Tensor) -> None:
        expert, slopes = index.reshape(-1).to(sums.device), slope.reshape(-1).double().to(sums.device)
        add_by_expert(sums[row], expert, -slopes)

    tokens = context.tokens(windows)
    for step in range(steps):
        alpha = (step + 0.5) / steps
        each_slope(context, tokens, alpha, add, f"integrated gradient {step + 1}/{steps}")
    return {"integrated": (sums / (steps * token_count(tokens))).cpu().numpy()}


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
    sums = zeros(context)
    tokens = context.tokens(windows)
    signs = _random_signs(probes, tokens)

    def work(start: int, stop: int) -> None:
        # Added when all are there: an attempt that runs out of memory leaves nothing behind.
        for squares in _squared_slopes(context, tokens[start:stop], signs[:, start:stop]):
            sums.add_(squares)

    over_windows(context, len(tokens), work, "fisher")
    return {"fisher": (sums / probes).cpu().numpy()}


def _random_signs(probes: int, tokens: Tensor) -> Tensor:
    """+1 or −1 for every token with a next one [probes, N, W − 1]."""
    num_windows, length = tokens.shape
    generator = torch.Generator().manual_seed(SEED)
    bits = torch.randint(0, 2, (probes, num_windows, length - 1), generator=generator)
    return bits.to(tokens.device) * 2 - 1


def _squared_slopes(context: ExperimentContext, tokens: Tensor, signs: Tensor) -> list[Tensor]:
    """(∂ Σ_t ε_t L_t / ∂α)², summed over probes and the windows of a batch: of every batch [L, E].

    Args:
        context: the model
        tokens: windows [N, W]
        signs: ε [probes, N, W − 1]
    """
    num_experts, length = context.anatomy.shape.num_experts, tokens.shape[1]
    parts = torch.split(signs, context.batch, dim=1)
    squares = [zeros(context) for _ in parts]

    def per_window(_: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """One α per window, because windows do not see each other."""
        num_windows = len(index) // length
        alpha = torch.ones(num_windows, num_experts, device=index.device, requires_grad=True)
        window = torch.arange(num_windows, device=index.device).repeat_interleave(length)[:, None]
        return alpha, alpha[window, index]

    def signed(batch: int, losses: Tensor) -> list[Tensor]:
        return [(losses * sign).sum() for sign in parts[batch]]

    def add(batch: int, row: int, _: Tensor, slopes: Sequence[Tensor]) -> None:
        for slope in slopes:
            squares[batch][row] += slope.double().square().sum(dim=0).to(squares[batch].device)

    Slopes(context.anatomy, torch.split(tokens, context.batch)).measure(per_window, signed, add)
    return squares
