"""Slopes of the loss in gate weights: a multiplier α on each of them, and one backward for all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm

from criteria.experiment_context import ExperimentContext
from experts.anatomy import Anatomy
from experts.effects.outcome import token_losses
from experts.memory import in_chunks
from experts.seam import Forward, intercepted


def each_slope(
    context: ExperimentContext,
    tokens: Tensor,
    alpha: float,
    add: Callable[[int, Tensor, Tensor], None],
    title: str,
) -> None:
    """Call add(row, index, slope) for every layer of every batch of windows.

    Args:
        context: the model
        tokens: windows [N, W]
        alpha: what all gate weights are multiplied by
        add: takes the row of a layer, expert ids [T, k], and the slope of Σ_t L_t in their multipliers [T, k]
        title: beside the progress bar
    """

    def constant(_: int, index: Tensor) -> Tensor:
        return torch.full(index.shape, alpha, device=index.device)

    with tqdm(total=len(tokens), desc=title, unit="window", delay=2) as bar:

        def work(start: int, stop: int) -> None:
            with multiplied_gates(context.anatomy, constant) as used:
                loss = losses_of(context, tokens[start:stop]).sum()
                slopes = torch.autograd.grad(loss, [multiplier for _, multiplier in used])
            for row, ((index, _), slope) in enumerate(zip(used, slopes, strict=True)):
                add(row, index, slope)
            bar.update(stop - start)

        in_chunks(len(tokens), context.batch, work, "window")


def losses_of(context: ExperimentContext, tokens: Tensor) -> Tensor:
    """Return the cross-entropy of every token with a next one [B, W − 1], in nats."""
    logits = context.anatomy.model(input_ids=tokens, use_cache=False).logits
    return token_losses(logits, tokens)


@contextmanager
def multiplied_gates(
    anatomy: Anatomy, multiplier: Callable[[int, Tensor], Tensor]
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inside the block, gate weights are multiplied; the model's own weights get no gradients.

    Args:
        anatomy: the model
        multiplier: (row, expert ids [T, k]) -> factors [T, k]

    Yields:
        Expert ids and factors of every layer, filled by a forward; the factors require gradients.
    """
    used: list[tuple[Tensor, Tensor]] = []

    def scale(row: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        factor = multiplier(row, index)
        if not factor.requires_grad:
            factor.requires_grad_()
        used.append((index, factor))
        return run(hidden, index, weight * factor.to(weight.dtype))

    trainable = [parameter for parameter in anatomy.model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with torch.enable_grad(), intercepted(anatomy, scale):
            yield used
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def zeros(context: ExperimentContext) -> Tensor:
    """Return sums to begin with [L, E], float64."""
    shape = (len(context.anatomy.layers), context.anatomy.shape.num_experts)
    return torch.zeros(shape, dtype=torch.float64, device=context.anatomy.device)


def token_count(tokens: Tensor) -> int:
    """Return how many tokens of windows [N, W] have a next one."""
    num_windows, length = tokens.shape
    return num_windows * (length - 1)
