"""Removals measured by whole forwards: the plain way, and the reference of every faster one."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from experts.ablation import ablated
from experts.anatomy import Anatomy
from experts.effects.outcome import outcomes
from experts.effects.stream import CleanForward
from experts.modes import Mode


@torch.no_grad()
def replay(
    anatomy: Anatomy,
    clean: CleanForward,
    removed: Mapping[int, Tensor],
    mode: Mode,
    means: Tensor | None = None,
    inside: AbstractContextManager[None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run all windows with experts removed.

    Args:
        anatomy: the model
        clean: the unmodified windows, B of W tokens
        removed: row among the MoE layers -> experts removed, bool [E] or, token by token, [B·W, E]
        mode: what removal means
        means: mean output of every expert [L, E, H], for Mode.MEAN
        inside: a context that the forward runs in

    Returns:
        Loss of the next token and KL in nats, float64 [B, W − 1] each.
    """
    with inside or nullcontext(), ablated(anatomy, removed, mode, means):
        logits = anatomy.model(input_ids=clean.tokens, use_cache=False).logits
    losses, divergences = [], []
    for window, of_window in enumerate(logits):
        loss, divergence = _window_outcomes(clean, window, of_window)
        losses.append(loss)
        divergences.append(divergence)
    return torch.stack(losses), torch.stack(divergences)


def replay_position(
    anatomy: Anatomy,
    clean: CleanForward,
    position: int,
    removed: Mapping[int, Tensor],
    mode: Mode,
    means: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a window with experts removed at one token.

    Args:
        anatomy: the model
        clean: the unmodified window, B = 1
        position: of the token
        removed: row among the MoE layers -> experts removed there, bool [E]
        mode: what removal means
        means: mean output of every expert [L, E, H], for Mode.MEAN

    Returns:
        Loss of the next token and KL in nats, scalars.
    """
    at_token = {row: _only_at(clean, position, marks) for row, marks in removed.items()}
    losses, divergences = replay(anatomy, clean, at_token, mode, means)
    return losses[0, position], divergences[0, position]


def _only_at(clean: CleanForward, position: int, marks: Tensor) -> Tensor:
    """The marks [E] at one token, none at the others [W, E]."""
    marks_of_tokens = torch.zeros(clean.tokens.numel(), len(marks), dtype=torch.bool, device=marks.device)
    marks_of_tokens[position] = marks
    return marks_of_tokens


def _window_outcomes(clean: CleanForward, window: int, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and KL [W − 1] of one window, from its logits [W, V]."""
    known = None if clean.log_probabilities is None else clean.log_probabilities[window]
    positions = torch.arange(len(logits) - 1, device=logits.device)
    return outcomes(logits[:-1], clean.tokens[window, 1:], known, positions)
