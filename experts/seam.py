"""The one place where the call of an experts module is intercepted: to watch it, or to edit its routing.

Every experts module behind transformers' interface is called with hidden states [T, H], expert ids [T, k] and
gate weights [T, k], after the model's own top-k, groups, correction bias and scaling. What is seen here is
therefore what is really applied.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from experts.anatomy import Anatomy
from experts.errors import ExciseError

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


class Handler(Protocol):
    """Replaces one experts call.

    Args:
        row: place of the layer among the L MoE layers
        run: the call underneath, of the model or of an outer handler
        hidden: hidden states [T, H]
        index: expert ids [T, k]
        weight: gate weights [T, k]

    Returns:
        The block's routed output [T, H].
    """

    def __call__(
        self, row: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor, /
    ) -> Tensor: ...


@contextmanager
def intercepted(anatomy: Anatomy, handler: Handler) -> Iterator[None]:
    """Inside the block every experts call goes through `handler`.

    Blocks nest. They leave no trace, also after an exception.
    """
    with ExitStack() as stack:
        for row, layer in enumerate(anatomy.layers):
            stack.enter_context(_patched(layer.experts, row, handler))
        yield


def _patched(experts: nn.Module, row: int, handler: Handler) -> AbstractContextManager[None]:
    underneath = experts.forward

    # The parameter names are those of the interface: some models pass them as keywords.
    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return handler(row, underneath, hidden_states, top_k_index, top_k_weights)

    return replaced(experts, forward)


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside the block `module` computes `forward`; nests; leaves no trace."""
    underneath, replaced_before = module.forward, "forward" in vars(module)
    module.forward = forward
    try:
        yield
    finally:
        if replaced_before:
            module.forward = underneath
        else:
            del module.forward


@dataclass(frozen=True)
class ExpertOutputs:
    """One experts call with the experts' outputs before weighting.

    S = T·k pairs of a token and an expert, in the order in which they were computed.

    Attributes:
        routed: the block's routed output Σ_e g_e f_e [T, H]
        outputs: f_e(x_t) [S, H]
        pair: which pair each row is [S]: token = pair // k, slot = pair % k
    """

    routed: Tensor
    outputs: Tensor
    pair: Tensor


def see_outputs(
    experts: nn.Module, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor
) -> ExpertOutputs:
    """Run the experts once and show what each of them returned: never a second evaluation.

    transformers' grouped and batched implementations have a hook between expert and gate weight
    (`post_expert_norm`), which is tapped; their routed output is the plain one, bit for bit. Other
    implementations are called with one pair per row and weight 1; their routed output is summed here, and
    equals the plain one up to rounding.

    Args:
        experts: the experts module
        run: its forward, or an outer handler's
        hidden: hidden states [T, H]
        index: expert ids [T, k]
        weight: gate weights [T, k]
    """
    config: Any = experts.config
    implementation = config._experts_implementation
    every = index.reshape(-1)
    in_order = torch.arange(len(every), device=every.device)
    if implementation not in ("grouped_mm", "batched_mm"):
        outputs = _one_by_one(run, hidden, index)
        routed = (outputs * weight.unsqueeze(-1)).sum(dim=1).to(hidden.dtype)
        return ExpertOutputs(routed, outputs.view(len(every), -1), in_order)
    # The grouped implementation sorts the pairs by expert, with this very call; the batched one does not.
    pair = torch.sort(every)[1] if implementation == "grouped_mm" else in_order
    with _tapped(experts) as rows:
        routed = run(hidden, index, weight)
    seen = ExpertOutputs(routed, rows.pop(), pair)
    _check_pairs(experts, seen, weight)
    return seen


_checked: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


def _check_pairs(experts: nn.Module, seen: ExpertOutputs, weight: Tensor) -> None:
    """Refuse outputs that are not those of the pairs they are taken for, once for every layer.

    The order in which a library sorts equal ids is its own affair: Σ g·f has to be the routed output.

    Raises:
        ExciseError: it is not.
    """
    if experts in _checked or not len(seen.outputs):
        return
    k = weight.shape[1]
    summed = torch.zeros(len(weight), seen.outputs.shape[1], dtype=torch.float64, device=weight.device)
    gates = weight.reshape(-1)[seen.pair].double()
    summed.index_add_(0, seen.pair // k, seen.outputs.double() * gates[:, None])
    gap = torch.linalg.vector_norm(summed - seen.routed.double())
    if gap > ROUNDING[seen.routed.dtype] * torch.linalg.vector_norm(summed):
        raise ExciseError(
            "the experts' outputs cannot be told apart on this device: weighted, they do not add up to the "
            "routed output; please report it, with the versions of `excise doctor`"
        )
    _checked.add(experts)


@contextmanager
def _tapped(experts: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the experts' outputs of a call, in the rows of the implementation."""
    table = vars(experts)
    rows: list[Tensor] = []
    had_norm = bool(experts.has_post_expert_norm)
    norm: Any = experts.post_expert_norm if had_norm else None

    def tap(outputs: Tensor) -> Tensor:
        rows.append(norm(outputs) if had_norm else outputs)
        return rows[-1]

    # Through __dict__: a norm that is a submodule stays registered, and is only hidden during the call.
    table["has_post_expert_norm"] = True
    table["post_expert_norm"] = tap
    try:
        yield rows
    finally:
        del table["post_expert_norm"]
        table["has_post_expert_norm"] = had_norm


def _one_by_one(run: Forward, hidden: Tensor, index: Tensor) -> Tensor:
    """f_e(x_t) [T, k, H]: each pair enters the call as a token of its own, with one expert of weight 1."""
    tokens, k = index.shape
    pairs = hidden.repeat_interleave(k, dim=0)
    ones = torch.ones(tokens * k, 1, dtype=hidden.dtype, device=hidden.device)
    return run(pairs, index.reshape(-1, 1), ones).view(tokens, k, -1)
