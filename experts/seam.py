"""The one place where the call of an experts module is intercepted: watch it, or edit its routing.

Every experts module behind transformers' interface is called with hidden states [T, H], expert ids [T, k] and gate weights
[T, k], after the model's own top-k, groups, correction bias and scaling. What is seen here is therefore what is really applied.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from experts.anatomy import Anatomy

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


class Handler(Protocol):
    """Replaces one experts call. layer: position among the L MoE layers; run: the call underneath (the model's or an outer handler's)."""

    def __call__(self, layer: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor: ...


@contextmanager
def intercepted(anatomy: Anatomy, handler: Handler) -> Iterator[None]:
    """Sends every experts call of the model through `handler`; nests; leaves no trace, also after an exception."""
    with ExitStack() as stack:
        for position, layer in enumerate(anatomy.layers):
            stack.enter_context(_patched(layer.experts, position, handler))
        yield


@contextmanager
def _patched(experts: nn.Module, position: int, handler: Handler) -> Iterator[None]:
    underneath, patched_before = experts.forward, "forward" in vars(experts)

    # The parameter names are those of the interface: some models pass them as keywords.
    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return handler(position, underneath, hidden_states, top_k_index, top_k_weights)

    experts.forward = forward
    try:
        yield
    finally:
        if patched_before:
            experts.forward = underneath
        else:
            del experts.forward


def unweighted(run: Forward, hidden: Tensor, index: Tensor) -> Tensor:
    """f_e(x_t) for every active (token, expert) pair, before the gate weight: [T, k, H].

    One call of the experts, no second evaluation: each pair enters as a token of its own with a single expert of weight 1.
    """
    tokens, k = index.shape
    pairs = hidden.repeat_interleave(k, dim=0)
    ones = torch.ones(tokens * k, 1, dtype=hidden.dtype, device=hidden.device)
    return run(pairs, index.reshape(-1, 1), ones).view(tokens, k, -1)


def combine(outputs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The block's routed output Σ_e g_e f_e [T, H], summed as transformers' grouped implementation does."""
    return (outputs * weight.unsqueeze(-1)).sum(dim=1).to(dtype)
