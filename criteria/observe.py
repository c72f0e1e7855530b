"""One forward pass over text that fills Statistics for every observed criterion at once.

Each expert runs once per routed token, as in a plain forward. Its output is seen before weighting
(experts/seam.py), and only norms and sums leave the call.
"""

import functools
import operator
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from criteria.collected import collected, resumed
from criteria.domain_sums import DomainSums
from criteria.layer_sums import Tokens, measured_call
from criteria.replacing import Replacing, check_routes_again, replacing
from criteria.residual_stream import residual_streams
from criteria.statistics import Statistics
from criteria.text.windows import Windows
from criteria.weight_norms import layer_norms
from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.decoder import Part, part_of
from experts.errors import ExciseError
from experts.keys import key_of
from experts.seam import Forward, intercepted, see_outputs
from experts.sweep.job import Job
from experts.sweep.progress import bar_around_sweeps
from experts.sweep.record import CleanForward
from experts.sweep.sweep import sweep
from experts.team import blocks

KEEP_EVERY = 60.0  # seconds between two savings of an unfinished pass
Keep = Callable[[Statistics], None]


def observe(
    anatomy: Anatomy,
    windows: Windows,
    batch: int = 8,
    done: Statistics | None = None,
    keep: Keep | None = None,
    forms: Collection[str] = (),
    pairs: bool = False,
) -> Statistics:
    """Return the statistics of a model on a text.

    Costs about 1.1 plain forwards of the text (benchmarks/calibration.py); more with forms of razor.

    Args:
        anatomy: the model
        windows: the text, N windows
        batch: windows per forward; changes memory and speed, never the result
        done: statistics of the first windows, from an interrupted pass
        keep: called with the statistics so far about every minute, where all weights are in memory
        forms: of `criteria.razor.FORMS` that are summed
        pairs: also sum over pairs of experts, for `hope` and `gram`

    Raises:
        ExciseError: `done` is of another text or another model, or a router cannot choose again.
    """
    if anatomy.team.size > 1:
        return _observe_together(anatomy, windows, batch, done, keep, forms, pairs)
    observation = Observation(anatomy, windows, batch, keep, forms, pairs)
    if done is not None:
        observation.resume(done)
    with observation.progress_bar():
        if observation.batches:
            sweep(anatomy, observation)
        else:
            observation.measure_weights_alone()
    return observation.statistics()


def _observe_together(
    anatomy: Anatomy,
    windows: Windows,
    batch: int,
    done: Statistics | None,
    keep: Keep | None,
    forms: Collection[str],
    pairs: bool,
) -> Statistics:
    """The same by several processes, in rounds of about a minute; in one where the weights are streamed."""
    team, start = anatomy.team, 0 if done is None else _windows_in(done, windows)
    each = len(windows) if anatomy.weights.streamed else batch  # windows of a process in a round
    with bar_around_sweeps(anatomy, "calibrate", "window", len(windows), start) as bar:
        while start < len(windows):
            began, stop = time.monotonic(), min(len(windows), start + each * team.size)
            ranges = blocks(stop - start, batch, team.size)
            parts = [np.arange(start + first, start + last) for first, last in ranges]
            given = [(windows.select(part), batch, None, None, forms, pairs) for part in parts]
            found = team.map(anatomy, observe, given)
            done = functools.reduce(operator.add, found if done is None else [done, *found])
            bar.update(stop - start)
            start = stop
            if keep is not None and start < len(windows):
                keep(done)
            each = batch * max(1, int(each / batch * KEEP_EVERY / max(time.monotonic() - began, 1e-3)))
    assert done is not None, "a text has windows"
    return done


class Observation(Job):
    """What the experts do on a text, as running sums.

    Args:
        anatomy: the model
        windows: the text, N windows
        batch: windows per forward
        keep: called with the statistics so far about every minute, where all weights are in memory
        forms: of `criteria.razor.FORMS` that are summed
        pairs: also sum over pairs of experts

    Attributes:
        sums: of every MoE layer [L]
    """

    title = "calibrate"
    head = False  # logits are not needed, and are the largest tensor of a forward
    branches = False

    def __init__(
        self,
        anatomy: Anatomy,
        windows: Windows,
        batch: int = 8,
        keep: Keep | None = None,
        forms: Collection[str] = (),
        pairs: bool = False,
    ) -> None:
        check_routes_again(anatomy, forms)
        self.anatomy, self.windows, self.size = anatomy, windows, batch
        self.keep = None if anatomy.weights.streamed else keep
        self.pairs = pairs
        num_experts, domains = anatomy.shape.num_experts, len(windows.domains)
        rows = range(len(anatomy.layers))
        self.sums = [DomainSums(num_experts, domains, forms, anatomy.device_of(row), pairs) for row in rows]
        self.forms = forms
        self.norms: dict[int, dict[str, Array]] = {}  # of weights, by row
        self.done: Statistics | None = None
        self.start = 0
        self.kept_at = time.monotonic()

    def resume(self, done: Statistics) -> None:
        """Go on where an interrupted pass ended."""
        self.done, self.start = done, _windows_in(done, self.windows)
        if bool(done.pair_norms.size) != self.pairs:
            raise ExciseError("the statistics of an interrupted pass have other sums; begin without them")
        for sums, earlier in zip(self.sums, resumed(done), strict=True):
            sums.restore(earlier)

    def progress_bar(self) -> "tqdm[Any]":
        """A bar over the windows, where a sweep does not show its own."""
        self.bar = bar_around_sweeps(self.anatomy, self.title, "window", len(self.windows), self.start)
        return self.bar

    @property
    def batches(self) -> int:
        return -(-(len(self.windows) - self.start) // self.size)

    @property
    def identity(self) -> str:
        return key_of("observe", self.windows.hash, *sorted(self.forms), *(["pairs"] if self.pairs else []))

    def clean(self, batch: int) -> CleanForward:
        windows, device = self._of(batch), self.anatomy.device
        return CleanForward.of(windows.tensor(device), windows.padding(device))

    @contextmanager
    def around(self, batch: int, part: Part) -> Iterator[None]:
        self._measure_weights(part)
        watcher = _Watcher(part, self.sums, _tokens(self._of(batch)))
        with (
            residual_streams(part.anatomy) as watcher.stream_before,
            replacing(part.anatomy, self.forms) as watcher.replacing,
            intercepted(part.anatomy, watcher.watch),
        ):
            yield

    def arrived(self, batch: int, clean: CleanForward, logits: Tensor | None) -> None:  # noqa: ARG002
        self.bar.update(len(clean.tokens))
        if self.keep and time.monotonic() - self.kept_at > KEEP_EVERY:
            stop = min(self.start + (batch + 1) * self.size, len(self.windows))
            self.keep(collected(self.sums, self.windows.select(np.arange(stop)), self._weights()))
            self.kept_at = time.monotonic()

    def state(self) -> dict[str, Array]:
        rows = [sums.arrays() for sums in self.sums]
        state = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        for row, norms in self.norms.items():
            state |= {f"{row} {name}": values for name, values in norms.items()}
        return state

    def restore(self, state: dict[str, Array]) -> None:
        names = self.sums[0].arrays().keys()
        for row, sums in enumerate(self.sums):
            sums.restore({name: state[name][row] for name in names})
        for key in state.keys() - names:
            number, name = key.split()
            self.norms.setdefault(int(number), {})[name] = state[key]

    def statistics(self) -> Statistics:
        """Of all windows."""
        return collected(self.sums, self.windows, self._weights())

    def measure_weights_alone(self) -> None:
        """For a pass that had seen all windows."""
        for span in self.anatomy.weights.spans():
            with self.anatomy.weights.loaded(span):
                self._measure_weights(part_of(self.anatomy, span))

    def _of(self, batch: int) -> Windows:
        first = self.start + batch * self.size
        return self.windows.select(np.arange(first, min(first + self.size, len(self.windows))))

    def _measure_weights(self, part: Part) -> None:
        """Norms of the weights of these layers, once, while they are in memory."""
        for row, layer in zip(part.rows, part.anatomy.layers, strict=True):
            if row not in self.norms:
                self.norms[row] = layer_norms(layer)
                self._check_same_model(row)

    def _check_same_model(self, row: int) -> None:
        if self.done is not None and not np.allclose(self.done.weight_l2[row], self.norms[row]["weight_l2"]):
            raise ExciseError(
                "the statistics of an interrupted pass are of another model: its weights differ"
            )

    def _weights(self) -> dict[str, Array]:
        """Norms of the weights of all layers [L, E] each."""
        names = self.norms[0]
        return {name: np.stack([self.norms[row][name] for row in sorted(self.norms)]) for name in names}


class _Watcher:
    """Adds up what the experts of some layers do with a batch.

    Attributes:
        stream_before: row of the part -> the residual stream before that layer's block
        replacing: what replacing an expert changes, by the forms that are asked for
    """

    stream_before: Callable[[int], Tensor | None]
    replacing: Replacing

    def __init__(self, part: Part, sums: list[DomainSums], tokens: Tokens) -> None:
        self.part, self.sums, self.tokens = part, sums, tokens

    def watch(self, row: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """Handle an experts call; see `experts.seam.Handler`."""
        seen = see_outputs(self.part.anatomy.layers[row].experts, run, hidden, index, weight)
        tokens, sums = self.tokens.to(index.device), self.sums[self.part.rows[row]]
        call = measured_call(seen, self.stream_before(row), index, weight, tokens)
        sums.add(call, self.replacing(row, run, hidden, index, weight, seen, tokens))
        sums.add_pairs(seen, index, weight, tokens)
        return seen.routed


def _tokens(windows: Windows) -> Tokens:
    """What is known of the tokens of a batch."""
    domain = torch.from_numpy(windows.domain)
    mask = torch.from_numpy(windows.mask)
    return Tokens(mask.reshape(-1), domain.unsqueeze(1).expand_as(mask).reshape(-1), bool(windows.mask.all()))


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
