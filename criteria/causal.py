"""Causal criteria: every expert is really removed and the loss is measured (docs/methods.md 1.3)."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from criteria.experiment_context import ExperimentContext
from criteria.window_rows import WindowRows
from experts.ablation import marked
from experts.arrays import Array
from experts.effects.instrument import Instrument
from experts.effects.stream import CleanForward
from experts.modes import Mode, Scope


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

    def work(start: int, stop: int) -> None:
        for number in range(start, stop):
            clean = instrument.clean_forward(tokens[number : number + 1], Scope.POSITION)
            for row in range(len(context.anatomy.layers)):
                rows.values[number, row] = _sums_over_tokens(instrument, clean, row).cpu().numpy()
                rows.advance(1)

    rows.fill(work, batch=1)
    num_windows, length = tokens.shape
    score = rows.values.sum(axis=0) / (num_windows * (length - 1))
    return {"score": score, "per_window": rows.values}


def _sums_over_tokens(instrument: Instrument, clean: CleanForward, row: int) -> Tensor:
    """ΔCE summed over the tokens at which each expert of a layer was removed [E]."""
    num_experts = instrument.anatomy.shape.num_experts
    index = clean.index[row][0, :-1]  # the last token has no next one
    expert = index.reshape(-1)
    token = torch.arange(len(index), device=index.device).repeat_interleave(index.shape[1])
    delta, _ = instrument.at_positions(clean, token, {row: one_hot(expert, num_experts).bool()})
    sums = torch.zeros(num_experts, dtype=torch.float64, device=index.device)
    return sums.index_add_(0, expert, delta)


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

    def work(start: int, stop: int) -> None:
        clean = instrument.clean_forward(tokens[start:stop], Scope.CORPUS)
        for row in range(len(anatomy.layers)):
            for expert in range(anatomy.shape.num_experts):
                effects = instrument.everywhere(clean, {row: marked(anatomy, expert)})[divergence]
                rows.values[start:stop, row, expert] = effects.mean(dim=1).cpu().numpy()
            rows.advance(stop - start)

    rows.fill(work, instrument.windows_at_once(tokens, context.batch))
    return {"score": rows.values.mean(axis=0), "per_window": rows.values}
