"""Causal criteria: every expert is really removed and the loss is measured (docs/methods.md 1.3)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from criteria.experiment_context import ExperimentContext
from criteria.window_rows import WindowRows
from experts.ablation import marked
from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.effects.instrument import Instrument
from experts.effects.measurement import measure
from experts.effects.removal import Removal, Take
from experts.modes import Mode, Scope
from experts.sweep.record import CleanForward


def position(context: ExperimentContext, mode: str, windows: int) -> dict[str, Array]:
    """Measure what removing an expert at one token costs, for every token and each of its experts.

    causal_position: Σ_t ΔCE_t / T, in nats, over all T tokens that have a next token, where ΔCE_t is the
    effect on the next token of removing e at t alone; 0 where e is not active at t. Costs 20 plain forwards
    on the demo (L, E, k = 6, 16, 4) and grows with L·k. Source: https://arxiv.org/abs/2606.10703

    Args:
        context: model and text
        mode: what removal means
        windows: how many windows are used; 0 = all

    Returns:
        `score` [L, E], and `per_window`, the sums of each window [N, L, E].
    """
    tokens = context.tokens(windows)
    instrument = Instrument.ready(context.anatomy, Mode(mode), Scope.POSITION, tokens, probabilities=False)
    rows = WindowRows(context, len(tokens), f"position effects ({mode})")
    rows.fill(_position_rows, (instrument.settings, rows.title), tokens, batch=1)
    num_windows, length = tokens.shape
    score = rows.values.sum(axis=0) / (num_windows * (length - 1))
    return {"score": score, "per_window": rows.values}


def _position_rows(anatomy: Anatomy, tokens: Tensor, settings: dict[str, Any], title: str) -> Array:
    """ΔCE of some windows, summed over the tokens at which each expert was removed [N, L, E]."""
    instrument = Instrument(anatomy, **settings)
    num_experts = anatomy.shape.num_experts
    rows: Array = np.full((len(tokens), len(anatomy.layers), num_experts), np.nan)

    def removals(batch: int, row: int, clean: CleanForward) -> Iterator[Removal]:
        yield _every_active_expert(clean, row, num_experts, rows[batch, row])

    batches = torch.split(tokens.to(anatomy.device), 1)
    measure(instrument, batches, Scope.POSITION, removals, title=title, results={"rows": rows})
    return rows


def _every_active_expert(clean: CleanForward, row: int, num_experts: int, values: Array) -> Removal:
    """Each expert of a layer removed at each token of a window that chose it.

    values: takes ΔCE summed over the tokens, expert by expert [E].
    """
    index = clean.index[row][0, :-1]  # the last token has no next one
    expert = index.reshape(-1)
    token = torch.arange(len(index), device=index.device).repeat_interleave(index.shape[1])

    def take(delta: Tensor, _: Tensor) -> None:
        sums = torch.zeros(num_experts, dtype=torch.float64, device=index.device)
        values[:] = sums.index_add_(0, expert, delta).cpu().numpy()

    return Removal(row, {row: one_hot(expert, num_experts).bool()}, take, token)


def removal(context: ExperimentContext, mode: str, outcome: str, windows: int) -> dict[str, Array]:
    """Measure what removing an expert at every token costs, leaving one out at a time.

    causal_removal: mean ΔCE over all tokens, or mean KL(unpruned ‖ pruned), in nats per token. KL is ΔCE
    averaged over what the model itself expects instead of the one token that came: the same damage, with less
    noise. Costs 50 plain forwards on the demo (L, E, k = 6, 16, 4) and grows with L·E.

    Args:
        context: model and text
        mode: what removal means
        outcome: loss = ΔCE, kl = KL
        windows: how many windows are used; 0 = all

    Returns:
        `score` [L, E], and `per_window`, the mean of each window [N, L, E].
    """
    tokens, divergence = context.tokens(windows), outcome == "kl"
    instrument = Instrument.ready(context.anatomy, Mode(mode), Scope.CORPUS, tokens, probabilities=divergence)
    rows = WindowRows(context, len(tokens), f"removal effects ({mode})")
    size = instrument.windows_at_once(tokens, context.batch)
    rows.fill(_removal_rows, (instrument.settings, rows.title, size), tokens, size)
    return {"score": rows.values.mean(axis=0), "per_window": rows.values}


def _removal_rows(anatomy: Anatomy, tokens: Tensor, settings: dict[str, Any], title: str, size: int) -> Array:
    """Mean ΔCE, or KL, of some windows without each expert [N, L, E].

    Args:
        anatomy: the model
        tokens: windows [N, W]
        settings: of the instrument; with probabilities KL is measured
        title: beside the progress bar
        size: windows per forward
    """
    instrument, num_experts = Instrument(anatomy, **settings), anatomy.shape.num_experts
    parts = torch.split(tokens.to(anatomy.device), size)
    rows: Array = np.full((len(tokens), len(anatomy.layers), num_experts), np.nan)

    def removals(batch: int, row: int, _: CleanForward) -> Iterator[Removal]:
        values = rows[batch * size : batch * size + len(parts[batch]), row]
        for expert in range(num_experts):
            take = _kept_means(values, expert, instrument.probabilities)
            yield Removal(row, {row: marked(anatomy, expert)}, take)

    measure(
        instrument,
        parts,
        Scope.CORPUS,
        removals,
        title=title,
        results={"rows": rows},
        most=lambda batch, row: num_experts,  # noqa: ARG005
    )
    return rows


def _kept_means(values: Array, expert: int, divergence: bool) -> Take:
    """What keeps the means of a removal over each window [N, E]: of KL if asked for, else of ΔCE."""

    def take(*effects: Tensor) -> None:
        values[:, expert] = effects[divergence].mean(dim=1).cpu().numpy()

    return take
