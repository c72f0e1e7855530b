"""Causal criteria: every expert is really removed and the loss is measured (docs/methods.md 1.3)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from criteria.experiment_context import ExperimentContext
from criteria.window_rows import WindowRows
from experts.ablation import marked
from experts.arrays import Array
from experts.effects.instrument import Instrument
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
    anatomy, num_experts = context.anatomy, context.anatomy.shape.num_experts
    instrument = Instrument.ready(anatomy, Mode(mode), Scope.POSITION, tokens, probabilities=False)
    rows = WindowRows(context, len(tokens), f"position effects ({mode})")

    def work(start: int, stop: int) -> None:
        def removals(batch: int, row: int, clean: CleanForward) -> Iterator[Removal]:
            yield _every_active_expert(clean, row, num_experts, rows.at(start + batch, row))
            rows.advance(1)

        batches, results = torch.split(tokens[start:stop], 1), {"rows": rows.values}
        instrument.measure(batches, Scope.POSITION, removals, title=rows.title, results=results)

    rows.fill(work, batch=1)
    num_windows, length = tokens.shape
    score = rows.values.sum(axis=0) / (num_windows * (length - 1))
    return {"score": score, "per_window": rows.values}


def _every_active_expert(
    clean: CleanForward, row: int, num_experts: int, keep: Callable[[Array], None]
) -> Removal:
    """Each expert of a layer removed at each token of a window that chose it.

    keep: takes ΔCE summed over the tokens, expert by expert [E].
    """
    index = clean.index[row][0, :-1]  # the last token has no next one
    expert = index.reshape(-1)
    token = torch.arange(len(index), device=index.device).repeat_interleave(index.shape[1])

    def take(delta: Tensor, _: Tensor) -> None:
        sums = torch.zeros(num_experts, dtype=torch.float64, device=index.device)
        keep(sums.index_add_(0, expert, delta).cpu().numpy())

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
    tokens = context.tokens(windows)
    anatomy, divergence = context.anatomy, outcome == "kl"
    instrument = Instrument.ready(anatomy, Mode(mode), Scope.CORPUS, tokens, probabilities=divergence)
    rows = WindowRows(context, len(tokens), f"removal effects ({mode})")
    size = instrument.windows_at_once(tokens, context.batch)

    def work(start: int, stop: int) -> None:
        parts = torch.split(tokens[start:stop], size)

        def removals(batch: int, row: int, _: CleanForward) -> Iterator[Removal]:
            windows = slice(start + batch * size, start + batch * size + len(parts[batch]))
            for expert in range(anatomy.shape.num_experts):
                take = _kept_means(rows, windows, row, expert, divergence)
                yield Removal(row, {row: marked(anatomy, expert)}, take)
            rows.advance(len(parts[batch]))

        instrument.measure(
            parts,
            Scope.CORPUS,
            removals,
            title=rows.title,
            results={"rows": rows.values},
            most=lambda batch, row: anatomy.shape.num_experts,  # noqa: ARG005
        )

    rows.fill(work, size)
    return {"score": rows.values.mean(axis=0), "per_window": rows.values}


def _kept_means(rows: WindowRows, windows: slice, row: int, expert: int, divergence: bool) -> Take:
    """What keeps the means of a removal over each window: of KL if asked for, else of ΔCE."""

    def take(*effects: Tensor) -> None:
        rows.values[windows, row, expert] = effects[divergence].mean(dim=1).cpu().numpy()

    return take
