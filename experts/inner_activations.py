"""What enters the experts' down projections: the module's own inner activations, seen where they are made."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experts.errors import ExciseError
from experts.seam import Forward

DOWN = "down_proj"  # transformers' name, whatever the checkpoint calls it


@dataclass(frozen=True)
class InnerActivations:
    """One experts call with what entered the down projections.

    S = T·k pairs of a token and an expert, I inner units.

    Attributes:
        routed: the block's routed output [T, H]
        inner: activations between up and down projection [S, I]
        pair: which pair each row is [S]: token = pair // k, slot = pair % k
    """

    routed: Tensor
    inner: Tensor
    pair: Tensor


@dataclass(frozen=True)
class Features:
    """What one expert adds to the features of a batch.

    Attributes:
        tokens: that go to it [n], each once
        values: its inner activations times its gate weight [n, I]
    """

    tokens: Tensor
    values: Tensor


def features_of(
    seen: InnerActivations,
    index: Tensor,
    weight: Tensor,
    experts: Sequence[int],
    readable: Tensor | None = None,
) -> list[Features]:
    """The features of some experts: Σ values · down projection is what they give.

    Args:
        seen: the call
        index: its expert ids [T, k]
        weight: its gate weights [T, k]
        experts: ids
        readable: tokens that count [T]; None = all
    """
    expert, token = index.reshape(-1)[seen.pair], seen.pair // index.shape[1]
    exact = torch.promote_types(seen.inner.dtype, torch.float32)
    values = seen.inner.to(exact) * weight.reshape(-1)[seen.pair].to(exact)[:, None]
    counts = torch.ones_like(token, dtype=torch.bool)
    if readable is not None:
        counts = readable.to(token.device)[token]
    marks = [(expert == one) & counts for one in experts]
    return [Features(token[own], values[own]) for own in marks]


def see_inner(
    experts: nn.Module, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor
) -> InnerActivations:
    """Run the experts once and show what enters each of their down projections.

    Args:
        experts: the experts module
        run: its forward, or an outer handler's
        hidden: hidden states [T, H]
        index: expert ids [T, k]
        weight: gate weights [T, k]

    Raises:
        ExciseError: the module computes in another way than transformers' grouped and batched ones.
    """
    implementation = check_inner(experts)
    every = index.reshape(-1)
    in_order = torch.arange(len(every), device=every.device)
    # The grouped implementation sorts the pairs by expert, with this very call; the batched one does not.
    pair = torch.sort(every)[1] if implementation == "grouped_mm" else in_order
    with _tapped(experts) as rows:
        routed = run(hidden, index, weight)
    return InnerActivations(routed, rows.pop(), pair)


def check_inner(experts: nn.Module) -> str:
    """Return how the experts are computed. Raises ExciseError where inner activations cannot be seen."""
    config: Any = experts.config
    implementation: str = config._experts_implementation
    if implementation not in ("grouped_mm", "batched_mm"):
        raise ExciseError(
            f"its experts are computed by {implementation!r}, where inner activations are not seen"
        )
    check_linear(experts)
    return implementation


def check_linear(experts: nn.Module) -> None:
    """Refuse experts whose outputs are not linear in their down projections, loaded or without weights.

    Raises:
        ExciseError: their outputs are normalised, or they have no down projection.
    """
    if experts.has_post_expert_norm:
        raise ExciseError(
            "its experts' outputs are normalised, so they are not linear in the down projection"
        )
    if DOWN not in dict(experts.named_parameters(recurse=False)):
        raise ExciseError(f"its experts have no {DOWN}")


@contextmanager
def _tapped(experts: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the activation function of a call returns, in the rows of the implementation."""
    table, name = vars(experts), "_apply_gate" if experts.has_gate else "act_fn"
    underneath, own = getattr(experts, name), name in table
    rows: list[Tensor] = []

    def tap(*arguments: Any) -> Tensor:
        rows.append(underneath(*arguments))
        return rows[-1]

    # Through __dict__: an activation that is a submodule stays registered, and is only hidden meanwhile.
    table[name] = tap
    try:
        yield rows
    finally:
        if own:
            table[name] = underneath
        else:
            del table[name]
