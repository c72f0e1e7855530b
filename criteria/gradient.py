"""First-order attributions: what a gradient says about a removal, for all experts at once (METHODS 1.2).

Every gate weight is multiplied by α_{l,e} = 1. −∂L/∂α estimates the effect of taking α to 0 (mode zero). A gradient cannot see re-routing:
`excise compare` prints its rank agreement with real removals.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm

from criteria.experiment_context import ExperimentContext
from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.effects.outcome import token_losses
from experts.memory import in_chunks
from experts.seam import Forward, intercepted


def first_order(setting: ExperimentContext, windows: int) -> dict[str, Array]:
    """gradient = −∂L/∂α, L = mean cross-entropy over T tokens, sign kept; gradient_abs = Σ_t |g_e f_e(x_t)·∂L/∂y_t|; both [L, E].

    One multiplier per token and expert: their gradients summed give ∂L/∂α, their absolute values do not cancel. Source: attribution
    patching (arXiv 2403.00745), INFORM (arXiv 2602.04291).
    """
    signed, absolute = (_zeros(setting) for _ in range(2))

    def add(layer: int, index: Tensor, slope: Tensor) -> None:
        flat = index.reshape(-1)
        signed[layer].index_add_(0, flat, -slope.reshape(-1).double())
        absolute[layer].index_add_(0, flat, slope.reshape(-1).double().abs())

    tokens = setting.tokens(windows)
    _slopes(setting, tokens, 1.0, add, "gradient")
    count = tokens.shape[0] * (tokens.shape[1] - 1)
    return {"gradient": (signed / count).cpu().numpy(), "gradient_abs": (absolute / count).cpu().numpy()}


def integrated(setting: ExperimentContext, steps: int, windows: int) -> dict[str, Array]:
    """Integrated gradient: −∫ ∂L/∂α_e dα along the straight path of all α together from 1 to 0, midpoint rule with `steps` points [L, E].

    Complete: Σ over all experts = L(α = 0) − L(α = 1), as steps grow, but for the jumps where a token changes its experts on the way,
    which no gradient sees. arXiv 1703.01365.
    """
    sums = _zeros(setting)

    def add(layer: int, index: Tensor, slope: Tensor) -> None:
        sums[layer].index_add_(0, index.reshape(-1), -slope.reshape(-1).double())

    tokens = setting.tokens(windows)
    for step in range(steps):
        _slopes(setting, tokens, (step + 0.5) / steps, add, f"integrated gradient {step + 1}/{steps}")
    return {"integrated": (sums / (steps * tokens.shape[0] * (tokens.shape[1] - 1))).cpu().numpy()}


def _zeros(setting: ExperimentContext) -> Tensor:
    device = setting.anatomy.device
    return torch.zeros(
        len(setting.anatomy.layers), setting.anatomy.shape.num_experts, dtype=torch.float64, device=device
    )


def _slopes(
    setting: ExperimentContext,
    tokens: Tensor,
    at: float,
    add: Callable[[int, Tensor, Tensor], None],
    what: str,
) -> None:
    """Calls add(layer, index [T, k], Σ_t L_t by the multiplier of every (token, slot) [T, k]) for every batch; multipliers are `at`."""
    with tqdm(total=len(tokens), desc=what, unit="window", delay=2) as bar:

        def work(start: int, stop: int) -> None:
            with _multiplied(
                setting.anatomy, lambda _, index: torch.full(index.shape, at, device=index.device)
            ) as used:
                loss = token_losses(
                    setting.anatomy.model(input_ids=tokens[start:stop], use_cache=False).logits,
                    tokens[start:stop],
                ).sum()
                slopes = torch.autograd.grad(loss, [multiplier for _, multiplier in used])
            for layer, ((index, _), slope) in enumerate(zip(used, slopes, strict=True)):
                add(layer, index, slope)
            bar.update(stop - start)

        in_chunks(len(tokens), setting.batch, work, "window")


def fisher(setting: ExperimentContext, probes: int, windows: int) -> dict[str, Array]:
    """fisher = Σ_t (∂L_t/∂α)² [L, E], L_t the loss at token t: the diagonal of the empirical Fisher information.

    Exact would be one backward per token. With random signs ε_t, E (∂ Σ_t ε_t L_t / ∂α)² is the same sum, window by window: `probes`
    backwards per window. The signs are seeded; the relative error is about √(2 / (windows · probes)).
    """
    sums = _zeros(setting)
    tokens = setting.tokens(windows)
    generator = torch.Generator().manual_seed(20061117)
    signs = (
        torch.randint(0, 2, (probes, len(tokens), tokens.shape[1] - 1), generator=generator).to(tokens.device)
        * 2
        - 1
    )

    with tqdm(total=len(tokens), desc="fisher", unit="window", delay=2) as bar:

        def work(start: int, stop: int) -> None:
            shape = (len(setting.anatomy.layers), stop - start, setting.anatomy.shape.num_experts)
            per_window = torch.ones(
                shape, device=tokens.device, requires_grad=True
            )  # one α per window: windows do not see each other
            of_token = torch.arange(stop - start, device=tokens.device).repeat_interleave(tokens.shape[1])
            squares = torch.zeros_like(
                sums
            )  # added at once: an attempt that runs out of memory leaves nothing behind
            with _multiplied(
                setting.anatomy, lambda layer, index: per_window[layer][of_token[:, None], index]
            ):
                losses = token_losses(
                    setting.anatomy.model(input_ids=tokens[start:stop], use_cache=False).logits,
                    tokens[start:stop],
                )
                for probe in range(probes):
                    total = (losses * signs[probe, start:stop]).sum()
                    (slope,) = torch.autograd.grad(total, [per_window], retain_graph=probe + 1 < probes)
                    squares += slope.double().square().sum(dim=1)
            sums.add_(squares)
            bar.update(stop - start)

        in_chunks(len(tokens), setting.batch, work, "window")
    return {"fisher": (sums / probes).cpu().numpy()}


@contextmanager
def _multiplied(
    anatomy: Anatomy, multiplier: Callable[[int, Tensor], Tensor]
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Gate weights times multiplier(layer, index [T, k]); gives the (index, multiplier) of every layer. Weights get no gradients."""
    used: list[tuple[Tensor, Tensor]] = []

    def scale(layer: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        factor = multiplier(layer, index)
        used.append((index, factor if factor.requires_grad else factor.requires_grad_()))
        return run(hidden, index, weight * used[-1][1].to(weight.dtype))

    trained = [parameter for parameter in anatomy.model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.enable_grad(), intercepted(anatomy, scale):
            yield used
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
