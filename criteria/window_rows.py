"""What an experiment measures window by window, kept against interruptions."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from criteria.experiment_context import ExperimentContext
from experts.arrays import Array
from experts.memory import in_chunks

KEEP_EVERY = 60.0  # seconds between two savings of an unfinished experiment


class WindowRows:
    """Values per window, layer and expert, filled window by window; what an interrupted run left is taken up.

    Attributes:
        values: [N, L, E], nan where nothing is measured yet
        title: beside the progress bar
    """

    def __init__(self, context: ExperimentContext, num_windows: int, title: str) -> None:
        self._partial, self.title = context.partial, title
        self._streamed = context.anatomy.weights.streamed
        shape = (num_windows, len(context.anatomy.layers), context.anatomy.shape.num_experts)
        earlier = self._partial.read().get("rows")
        fits = earlier is not None and earlier.shape == shape
        self.values: Array = earlier if earlier is not None and fits else np.full(shape, np.nan)

    def fill(self, work: Callable[[int, int], None], batch: int) -> None:
        """Call work(start, stop) on the windows that are missing, `batch` at a time or fewer.

        `work` calls `advance` for every layer that it has finished. Where weights are streamed it is called
        once for all windows: they share the reading.
        """
        finished = int(np.isfinite(self.values).all(axis=(1, 2)).sum())
        kept_at = time.monotonic()

        def step(start: int, stop: int) -> None:
            nonlocal kept_at
            work(finished + start, finished + stop)
            if time.monotonic() - kept_at > KEEP_EVERY:
                self._partial.write({"rows": self.values})
                kept_at = time.monotonic()

        with self._progress_bar(finished) as self._bar:
            left = len(self.values) - finished
            in_chunks(left, left if self._streamed else batch, step, "window")

    def at(self, window: int, row: int) -> Callable[[Array], None]:
        """What takes the values of one window and layer [E]."""

        def keep(values: Array) -> None:
            self.values[window, row] = values

        return keep

    def advance(self, windows: int) -> None:
        """Show that one more layer of so many windows is measured."""
        self._bar.update(windows)

    def _progress_bar(self, finished: int) -> "tqdm[Any]":
        num_windows, num_layers, _ = self.values.shape
        return tqdm(
            total=num_layers * num_windows,
            initial=num_layers * finished,
            desc=self.title,
            unit="window·layer",
            delay=2,
            disable=self._streamed,  # the sweep shows its own
        )
