"""One forward pass over text that fills Statistics for every observed criterion at once.

Each expert runs once per routed token, as in a plain forward. Its output is seen before weighting
(experts/seam.py), and only norms and sums leave the call.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from criteria.layer_sums import LayerSums, Tokens, measured_call
from criteria.residual_stream import residual_streams
from criteria.statistics import Statistics
from criteria.text.windows import Windows
from criteria.weight_norms import weight_norms
from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.errors import ExciseError
from experts.seam import Forward, intercepted, see_outputs

KEEP_EVERY = 60.0  # seconds between two savings of an unfinished pass
Keep = Callable[[Statistics], None]


@torch.no_grad()
def observe(
    anatomy: Anatomy,
    windows: Windows,
    batch: int = 8,
    done: Statistics | None = None,
    keep: Keep | None = None,
) -> Statistics:
    """Return the statistics of a model on a text.

    Costs about 1.1 plain forwards of the text (benchmarks/calibration.py).

    Args:
        anatomy: the model
        windows: the text, N windows
        batch: windows per forward; changes memory and speed, never the result
        done: statistics of the first windows, from an interrupted pass
        keep: called with the statistics so far about every minute

    Raises:
        ExciseError: `done` is of another text or another model.
    """
    weights = weight_norms(anatomy)
    sums = [
        LayerSums(anatomy.shape.num_experts, len(windows.domains), anatomy.device) for _ in anatomy.layers
    ]
    start = 0
    if done is not None:
        start = _resume(sums, done, windows, weights)
    kept_at = time.monotonic()
    with (
        observed(anatomy, sums) as forward,
        tqdm(total=len(windows), initial=start, desc="calibrate", unit="window", delay=2) as bar,
    ):
        for first in range(start, len(windows), batch):
            stop = min(first + batch, len(windows))
            forward(windows.select(np.arange(first, stop)))
            bar.update(stop - first)
            if keep and time.monotonic() - kept_at > KEEP_EVERY:
                keep(_collect(sums, windows.select(np.arange(stop)), weights))
                kept_at = time.monotonic()
    return _collect(sums, windows, weights)


@contextmanager
def observed(anatomy: Anatomy, sums: list[LayerSums]) -> Iterator[Callable[[Windows], None]]:
    """Inside the block, yield a function that runs windows through the model and adds up what the experts do.

    Args:
        anatomy: the model
        sums: of every MoE layer [L]
    """
    with residual_streams(anatomy) as stream_before:
        observer = _Observer(anatomy, sums, stream_before)
        with intercepted(anatomy, observer.watch):
            yield observer.forward


class _Observer:
    """Runs windows, and adds up what the experts do meanwhile."""

    batch: Tokens  # of the forward at work

    def __init__(
        self,
        anatomy: Anatomy,
        sums: list[LayerSums],
        stream_before: Callable[[int], Tensor | None],
    ) -> None:
        self.anatomy, self.sums, self.stream_before = anatomy, sums, stream_before

    def forward(self, windows: Windows) -> None:
        """Run the model without its head: logits are not needed, and are the largest tensor of a forward."""
        device = self.anatomy.device
        tokens = windows.tensor(device)
        mask = torch.from_numpy(windows.mask).to(device)
        domain = torch.from_numpy(windows.domain).to(device)
        self.batch = Tokens(mask.reshape(-1), domain.unsqueeze(1).expand_as(tokens).reshape(-1))
        padding = {} if bool(mask.all()) else {"attention_mask": mask.long()}
        self.anatomy.model.base_model(input_ids=tokens, use_cache=False, **padding)

    def watch(self, row: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """Handle an experts call; see `experts.seam.Handler`."""
        seen = see_outputs(self.anatomy.layers[row].experts, run, hidden, index, weight)
        stream = self.stream_before(row)
        self.sums[row].add(measured_call(seen, stream, index, weight, self.batch))
        return seen.routed


def _resume(sums: list[LayerSums], done: Statistics, windows: Windows, weights: dict[str, Array]) -> int:
    """Put the sums of an interrupted pass in place. Returns the number of windows they are of."""
    if not np.allclose(done.weight_l2, weights["weight_l2"]):
        raise ExciseError("the statistics of an interrupted pass are of another model: its weights differ")
    for row, layer_sums in enumerate(sums):
        layer_sums.resume(done, row)
    return _windows_in(done, windows)


def _windows_in(done: Statistics, windows: Windows) -> int:
    """How many of the first windows statistics are made of, by their number of tokens without padding."""
    seen = done.tokens.sum()
    if seen == 0:
        return 0
    tokens = windows.mask.sum(axis=1).cumsum()
    count = int(np.searchsorted(tokens, seen)) + 1
    if count > len(windows) or tokens[count - 1] != seen:
        raise ExciseError("the statistics of an interrupted pass are of other windows; begin without them")
    return count


def _collect(sums: list[LayerSums], seen: Windows, weights: dict[str, Array]) -> Statistics:
    """The sums of all layers as statistics of the windows that were seen."""

    def stacked(name: str) -> Array:
        return np.stack([getattr(layer_sums, name).cpu().numpy() for layer_sums in sums])

    lengths = seen.mask.sum(axis=1)
    tokens = np.bincount(seen.domain, weights=lengths, minlength=len(seen.domains)).astype(np.float64)
    moments = stacked("moments")
    return Statistics(
        tokens=tokens,
        moments=moments.reshape(*moments.shape[:2], 3, 3),
        peak=stacked("peak"),
        turning=stacked("turning"),
        together=stacked("together"),
        by_domain=stacked("by_domain"),
        router_norm=weights["router_norm"],
        weight_l1=weights["weight_l1"],
        weight_l2=weights["weight_l2"],
        weight_count=weights["weight_count"],
    )
