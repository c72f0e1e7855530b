"""What a layer's routed block is trained on: what enters it in the pruned model, what it should return."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from experts.anatomy import MoELayer
from experts.errors import ExciseError

UNSEEN = 8  # every eighth window is one that no step trains on; of fewer windows, the last one


@dataclass(frozen=True)
class Examples:
    """T tokens of a layer.

    Attributes:
        entering: what enters the block [T, H]
        target: what its experts should add up to [T, H]
        unseen: True at tokens that no step trains on [T]
    """

    entering: Tensor
    target: Tensor
    unseen: Tensor

    @cached_property
    def square(self) -> float:
        """mean Y²."""
        return float(self.target.double().square().mean())

    def loss(self, block: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        """‖block(x) − Y‖² / mean Y², a mean over these tokens and all dimensions."""
        gap = block(self.entering[tokens]).to(self.target.dtype) - self.target[tokens]
        return gap.square().mean() / self.square

    def unseen_loss(self, block: Callable[[Tensor], Tensor], size: int) -> float:
        """The loss on the tokens that no step trains on. size: tokens per call of the block."""
        tokens = torch.nonzero(self.unseen)[:, 0]
        losses = [float(self.loss(block, part)) * len(part) for part in torch.split(tokens, size)]
        return sum(losses) / len(tokens)


class Collected:
    """Examples, batch by batch.

    Args:
        num_windows: N, of all batches
        length: tokens per window, W
    """

    def __init__(self, num_windows: int, length: int) -> None:
        self._every, self._length, self._windows = min(UNSEEN, num_windows), length, 0
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, entering: Tensor, target: Tensor, readable: Tensor) -> None:
        """Add a batch of B windows.

        Args:
            entering: what enters the block [B·W, H]
            target: what its experts should add up to [B·W, H]
            readable: False on padding, which is left out [B·W]
        """
        window = self._windows + torch.arange(len(readable), device=readable.device) // self._length
        unseen = window % self._every == self._every - 1
        self._windows += len(readable) // self._length
        exact = torch.promote_types(entering.dtype, torch.float32)
        self._parts.append((entering[readable], target[readable].to(exact), unseen[readable]))

    def examples(self) -> Examples:
        """All of them."""
        return Examples(*(torch.cat(parts) for parts in zip(*self._parts, strict=True)))


@contextmanager
def entering_block(layer: MoELayer) -> Iterator[list[Tensor]]:
    """Collect what enters a block [B·W, H], call by call.

    Raises:
        ExciseError: it takes several tensors, so it cannot be trained on its own.
    """
    found: list[Tensor] = []

    def see(_: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if len(tensors) != 1:
            takes = f"the block takes {len(tensors)} tensors"
            raise ExciseError(f"{layer.name}: cannot be trained: {takes}; refit without local")
        found.append(tensors[0].detach().reshape(-1, tensors[0].shape[-1]))

    hook = layer.block.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()
