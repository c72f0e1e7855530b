"""What an experiment measures window by window, kept against interruptions."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from criteria.experiment_context import ExperimentContext
from experts.arrays import Array
from experts.memory import in_chunks
from experts.sweep.progress import bar_around_sweeps
from experts.team import blocks

KEEP_EVERY = 60.0  # seconds between two savings of an unfinished experiment


class WindowRows:
    """Values per window, layer and expert, filled window by window; what an interrupted run left is taken up.

    Attributes:
        values: [N, L, E], nan where nothing is measured yet
        title: beside the progress bar
    """

    def __init__(self, context: ExperimentContext, num_windows: int, title: str) -> None:
        self._partial, self.title, self._anatomy = context.partial, title, context.anatomy
        shape = (num_windows, len(context.anatomy.layers), context.anatomy.shape.num_experts)
        earlier = self._partial.read().get("rows")
        fits = earlier is not None and earlier.shape == shape
        self.values: Array = earlier if earlier is not None and fits else np.full(shape, np.nan)

    def fill(
        self, measured: Callable[..., Array], settings: tuple[Any, ...], tokens: Tensor, batch: int
    ) -> None:
        """Measure the windows that are missing, `batch` at a time in every process, or fewer.

        Where weights are streamed all windows are measured at once: they share the reading.

        Args:
            measured: measured(anatomy, tokens, *settings) returns values [n, L, E] of n windows
            settings: what other processes need besides
            tokens: all windows [N, W]
            batch: windows per forward
        """
        finished = int(np.isfinite(self.values).all(axis=(1, 2)).sum())
        team, streamed = self._anatomy.team, self._anatomy.weights.streamed
        kept_at = time.monotonic()

        def step(start: int, stop: int) -> None:
            nonlocal kept_at
            start, stop = finished + start, finished + stop
            parts = [(start + first, start + last) for first, last in blocks(stop - start, batch, team.size)]
            arguments = [(tokens[first:last].cpu(), *settings) for first, last in parts]
            values = team.map(self._anatomy, measured, arguments)
            for (first, last), of_part in zip(parts, values, strict=True):
                self.values[first:last] = of_part
            bar.update((stop - start) * self.values.shape[1])
            if time.monotonic() - kept_at > KEEP_EVERY:
                self._partial.write({"rows": self.values})
                kept_at = time.monotonic()

        num_windows, num_layers, _ = self.values.shape
        total, done = num_layers * num_windows, num_layers * finished
        with bar_around_sweeps(self._anatomy, self.title, "window·layer", total, done) as bar:
            left = len(self.values) - finished
            in_chunks(left, left if streamed else batch * team.size, step, "window")
