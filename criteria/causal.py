"""Causal criteria: every expert is really removed and the loss is measured (METHODS 1.3). Results keep one row per window."""

import time
from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm

from criteria.experiment_context import ExperimentContext
from experts.ablation import marked
from experts.arrays import Array
from experts.effects.instrument import Instrument
from experts.memory import in_chunks
from experts.modes import Mode, Scope
from experts.notes import tell

KEEP_EVERY = 60.0  # seconds between two savings of an unfinished experiment


def position(setting: ExperimentContext, mode: str, windows: int) -> dict[str, Array]:
    """causal_position: Σ over tokens of the effect of removing e at that token alone, on the next token, / T; nats.

    Exhaustive: every position that has a next token, every active expert. Gives score [L, E] and per_window: the sums [N, L, E].
    """
    tokens = setting.tokens(windows)
    anatomy = setting.anatomy
    instrument = Instrument(anatomy, Mode(mode), probabilities=False)
    instrument.check(tokens, Scope.POSITION)
    rows = _Rows(setting, len(tokens), f"position effects ({mode})", instrument)

    def work(start: int, stop: int) -> None:
        for number in range(start, stop):
            clean = instrument.clean_forward(tokens[number : number + 1], Scope.POSITION)
            for layer in range(len(anatomy.layers)):
                index = clean.index[layer][0, :-1]
                where = torch.arange(len(index), device=index.device).repeat_interleave(index.shape[1])
                marks = torch.nn.functional.one_hot(index.reshape(-1), anatomy.shape.num_experts).bool()
                delta, _ = instrument.at_positions(clean, where, {layer: marks})
                sums = torch.zeros(
                    anatomy.shape.num_experts, dtype=torch.float64, device=index.device
                ).index_add_(0, index.reshape(-1), delta)
                rows.values[number, layer] = sums.cpu().numpy()
                rows.advance(1)

    rows.fill(work, 1)
    return {
        "score": rows.values.sum(axis=0) / (tokens.shape[0] * (tokens.shape[1] - 1)),
        "per_window": rows.values,
    }


def removal(setting: ExperimentContext, mode: str, outcome: str, windows: int) -> dict[str, Array]:
    """causal_removal: mean ΔCE with e removed at every token, leave one out; nats per token. outcome `kl`: mean KL(clean ‖ ablated).

    KL is ΔCE averaged over what the model itself expects instead of the one token that came: the same damage, with less noise.
    Gives score [L, E] and per_window: the mean of every window [N, L, E].
    """
    tokens = setting.tokens(windows)
    anatomy = setting.anatomy
    instrument = Instrument(anatomy, Mode(mode), probabilities=outcome == "kl")
    instrument.check(tokens, Scope.CORPUS)
    rows = _Rows(setting, len(tokens), f"removal effects ({mode})", instrument)

    def work(start: int, stop: int) -> None:
        clean = instrument.clean_forward(tokens[start:stop], Scope.CORPUS)
        for layer in range(len(anatomy.layers)):
            for expert in range(anatomy.shape.num_experts):
                effect = instrument.everywhere(clean, {layer: marked(anatomy, expert)})[outcome == "kl"]
                rows.values[start:stop, layer, expert] = effect.mean(dim=1).cpu().numpy()
            rows.advance(stop - start)

    rows.fill(work, instrument.windows_at_once(tokens, setting.batch))
    return {"score": rows.values.mean(axis=0), "per_window": rows.values}


class _Rows:
    """Rows [N, L, E] that are filled window by window; nan = not yet. Takes up what an interrupted run left."""

    def __init__(self, setting: ExperimentContext, windows: int, what: str, instrument: Instrument) -> None:
        shape = (windows, len(setting.anatomy.layers), setting.anatomy.shape.num_experts)
        kept = setting.partial.read().get("rows")
        self.values: Array = kept if kept is not None and kept.shape == shape else np.full(shape, np.nan)
        self.partial, self.what = setting.partial, what
        for note in instrument.notes:
            tell(note)

    def advance(self, windows: int) -> None:
        """Another layer of so many windows is done."""
        self.bar.update(windows)

    def fill(self, work: Callable[[int, int], None], batch: int) -> None:
        """Runs work(start, stop) over the windows that are missing."""
        layers, first = self.values.shape[1], int(np.isfinite(self.values).all(axis=(1, 2)).sum())
        kept_at = time.monotonic()

        def step(start: int, stop: int) -> None:
            nonlocal kept_at
            work(first + start, first + stop)
            if time.monotonic() - kept_at > KEEP_EVERY:
                self.partial.write({"rows": self.values})
                kept_at = time.monotonic()

        with tqdm(
            total=layers * len(self.values),
            initial=layers * first,
            desc=self.what,
            unit="window·layer",
            delay=2,
        ) as self.bar:
            in_chunks(len(self.values) - first, batch, step, "window")
