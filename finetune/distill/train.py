"""The training of one layer: Adam on its routed block; the weights that do best on unseen tokens are kept."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from finetune.distill.block import ROUTER, Block, matrices, still
from finetune.distill.examples import Examples
from finetune.distill.settings import Local

BETAS = 0.9, 0.99
CHECKED = 10  # steps after which the loss on unseen tokens is looked at; the last step's, too


@dataclass(frozen=True)
class Distilled:
    """What the training of a layer came to.

    Losses are ‖block(x) − Y‖² / mean Y² on tokens that no step trained on.

    Attributes:
        step: whose weights are kept; 0 = those of the refit
        before: loss of the refitted weights
        after: loss of the kept ones, rounded to the model's precision
    """

    step: int
    before: float
    after: float


class _Best:
    """The best weights so far."""

    def __init__(self, block: Block, examples: Examples, size: int) -> None:
        self.block, self.examples, self.size = block, examples, size
        self.step, self.weights = 0, matrices(block.leaves)
        self.first = self.loss = examples.unseen_loss(block, size)

    def look(self, step: int) -> None:
        """Keep the weights of a step if they do better than all before."""
        loss = self.examples.unseen_loss(self.block, self.size)
        if loss < self.loss:
            self.step, self.loss, self.weights = step, loss, matrices(self.block.leaves)


def distilled(
    block: Block, examples: Examples, local: Local, unchanged: list[int]
) -> tuple[Distilled, dict[str, Tensor]]:
    """Train a block.

    Args:
        block: as `trainable_block` gives it; its weights are changed
        examples: of its layer
        local: how
        unchanged: places of experts that stay as they are, among the K kept ones

    Returns:
        What it came to, and the kept weights by name [K, …].
    """
    best = _Best(block, examples, local.tokens)
    leaves, exact = dict(block.leaves), _exact(block.leaves)
    rates = [
        {"params": [exact[name]], "lr": local.router_lr if name == ROUTER else local.lr} for name in leaves
    ]
    optimizer = Adam(rates, betas=BETAS)
    schedule = CosineAnnealingLR(optimizer, local.steps)
    generator = torch.Generator().manual_seed(local.seed << 16 | block.layer.index)
    seen = torch.nonzero(~examples.unseen)[:, 0]
    for step in range(1, local.steps + 1):
        drawn = torch.randint(len(seen), (min(local.tokens, len(seen)),), generator=generator)
        _backward(block, examples, seen[drawn.to(seen.device)], exact, unchanged)
        optimizer.step()
        schedule.step()
        for name, leaf in leaves.items():
            leaf.data.copy_(exact[name])
        if step % CHECKED == 0 or step == local.steps:
            best.look(step)
    return Distilled(best.step, best.first, best.loss), best.weights


def _exact(leaves: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Copies for Adam, in float32 at least: its steps are smaller than bfloat16 can tell."""
    return {
        name: leaf.detach().to(torch.promote_types(leaf.dtype, torch.float32), copy=True)
        for name, leaf in leaves.items()
    }


def _backward(
    block: Block, examples: Examples, tokens: Tensor, exact: Mapping[str, Tensor], unchanged: list[int]
) -> None:
    """Set the gradients of the exact copies. A weight that the output does not depend on has none."""
    with torch.enable_grad():
        loss = examples.loss(block, tokens)
        gradients = torch.autograd.grad(loss, list(block.leaves.values()), allow_unused=True)
    for name, gradient in zip(block.leaves, gradients, strict=True):
        copy = exact[name]
        copy.grad = None if gradient is None else still(gradient.to(copy.dtype), unchanged)
