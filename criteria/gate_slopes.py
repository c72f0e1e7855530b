"""Slopes of the loss in gate weights: a multiplier α on each of them, and one backward for all.

The backward is a second sweep, from the last decoder layer down: it runs the layers again, with autograd,
from what the sweep up left at their entry. Where all weights are in memory, that is one forward and one
backward.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from criteria.experiment_context import ExperimentContext
from criteria.slope_record import SlopeWork, Way, way
from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.decoder import Part, part_of
from experts.effects.outcome import token_losses
from experts.memory import in_chunks
from experts.seam import Forward, intercepted
from experts.sweep.progress import bar_around_sweeps
from experts.sweep.record import CleanForward
from experts.sweep.stage import Stage, State
from experts.sweep.streams import Streams
from experts.team import deal, undeal

ENTERS = "enters"  # first word of the keys of waiting states
# Of a MoE layer and expert ids [T, k] of a batch: α, which gets a gradient, and α of each of the ids [T, k].
Multiplier = Callable[[int, Tensor], tuple[Tensor, Tensor]]
# Sums of the losses of a batch [B, W − 1], each of which is differentiated.
Totals = Callable[[int, Tensor], Sequence[Tensor]]
# Takes the number of a batch, the row of a layer, its expert ids [T, k], and the slope of every total in α.
Add = Callable[[int, int, Tensor, Sequence[Tensor]], None]


def summed(
    context: ExperimentContext,
    windows: Sequence[Tensor],
    measured: Callable[..., list[Array]],
    settings: tuple[Any, ...],
    title: str,
) -> Array:
    """Sum what is measured of every batch of windows, in their order; see `of_batches`."""
    return functools.reduce(np.add, of_batches(context, windows, measured, settings, title))


def of_batches(
    context: ExperimentContext,
    windows: Sequence[Tensor],
    measured: Callable[..., list[Array]],
    settings: tuple[Any, ...],
    title: str,
) -> list[Array]:
    """Return what is measured of every batch of windows, in their order.

    Args:
        context: the model
        windows: tensors with an entry for every window; token ids [N, W] are the first
        measured: measured(anatomy, batches, *settings) returns an array for every batch, a tuple of tensors
        settings: what other processes need besides
        title: beside the progress bar
    """
    anatomy, team = context.anatomy, context.anatomy.team
    num_windows = len(windows[0])
    totals: list[Array] = []

    def work(start: int, stop: int) -> None:
        size = min(context.batch, stop - start)
        cuts = [torch.split(values[start:stop].cpu(), size) for values in windows]
        hands = deal(list(zip(*cuts, strict=True)), team.size)
        totals.extend(undeal(team.map(anatomy, measured, [(hand, *settings) for hand in hands])))
        bar.update(stop - start)

    at_once = num_windows if anatomy.weights.streamed else context.batch * team.size
    with bar_around_sweeps(anatomy, title, "window", num_windows) as bar:
        in_chunks(num_windows, at_once, work, "window")
    return totals


@dataclass
class Slopes:
    """Slopes of losses in multipliers of the gate weights.

    Attributes:
        anatomy: the model
        batches: windows [B, W] of every forward
        losses: what totals are made of, from the number of a batch and its logits [B, W, V]; None = the
            loss of the next token [B, W − 1]
    """

    anatomy: Anatomy
    batches: Sequence[Tensor]
    losses: Callable[[int, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        self.stage = Stage(self.anatomy)
        self.parts = [part_of(self.anatomy, span) for span in self.anatomy.weights.spans()]

    def measure(self, multiplier: Multiplier, totals: Totals, add: Add, work: SlopeWork) -> None:
        """Run both sweeps.

        Args:
            multiplier: called once for every layer and batch, in each sweep
            totals: what is differentiated
            add: takes the slopes; called when a layer of a batch is done
            work: what it is for; `add` adds to its results
        """
        first = self.anatomy.layers[0].index
        up = list(enumerate(self.parts[:-1]))
        down = [(place, part) for place, part in enumerate(self.parts) if part.span.stop > first][::-1]
        steps = len(up) + len(down)
        count = len(self.batches)
        with frozen(self.anatomy), way(self.anatomy, self.stage, self.batches, work, steps * count) as found:
            for place, part in up[found.place :]:
                with self.anatomy.weights.loaded(part.span), torch.no_grad():
                    self._up(found.streams, multiplier, place, part)
                found.done(count, last=False)
            for place, part in down[found.place - len(up) :]:
                with self.anatomy.weights.loaded(part.span):
                    self._down(found, (multiplier, totals, add), place, part)
                found.done(count, last=found.place + 1 == steps)

    def _up(self, streams: Streams, multiplier: Multiplier, place: int, part: Part) -> None:
        """Leave what enters the next part."""
        for batch in range(len(self.batches)):
            with multiplied_gates(part, multiplier):
                leaving = self._run(part, batch, streams.get((ENTERS, place, batch)))
            assert isinstance(leaving, dict), "not the last part"
            streams.put((ENTERS, place + 1, batch), leaving)

    def _down(self, found: Way, functions: tuple[Multiplier, Totals, Add], place: int, part: Part) -> None:
        """Take the slopes of the totals in what leaves a part to what enters it, and to the multipliers."""
        for batch in range(len(self.batches)):
            entering = found.streams.get((ENTERS, place, batch))
            found.streams.drop((ENTERS, place, batch))
            later = found.slopes.pop(batch, None)
            found.slopes[batch] = self._back(part, batch, entering, later, functions)

    def _back(
        self,
        part: Part,
        batch: int,
        entering: State | None,
        later: list[State] | None,
        functions: tuple[Multiplier, Totals, Add],
    ) -> list[State]:
        """One batch through one part, forward and backward.

        Args:
            part: decoder layers
            batch: number of the batch
            entering: what enters them
            later: slopes of every total in what leaves them; None after the last layer
            functions: of `measure`

        Returns:
            Slopes of every total in what enters them.
        """
        multiplier, totals, add = functions
        with multiplied_gates(part, multiplier) as used:
            leaves = _leaves(entering)
            output = self._run(part, batch, leaves or None)
            targets = self._targets(batch, output, totals, later)
        inputs = [*(alpha for _, alpha in used), *_floating(leaves).values()]
        found = []
        for number, (tensors, outside) in enumerate(targets, 1):
            more = number < len(targets)
            found.append(
                torch.autograd.grad(tensors, inputs, outside, retain_graph=more, allow_unused=bool(leaves))
            )
        for place, (index, alpha) in enumerate(used):
            in_alpha = [torch.zeros_like(alpha) if one[place] is None else one[place] for one in found]
            add(batch, part.rows[place], index, in_alpha)
        return [dict(zip(_floating(leaves), one[len(used) :], strict=True)) for one in found]

    def _run(self, part: Part, batch: int, state: State | None) -> State | Tensor | None:
        return self.stage.run(part.span, state, CleanForward.of(self.batches[batch]).inputs)

    def _targets(
        self, batch: int, output: State | Tensor | None, totals: Totals, later: list[State] | None
    ) -> list[tuple[list[Tensor], list[Tensor] | None]]:
        """What is differentiated: tensors, and slopes of a total in them; None for the totals themselves."""
        if isinstance(output, Tensor):
            of_next = functools.partial(token_losses, tokens=self.batches[batch])
            losses = of_next(output) if self.losses is None else self.losses(batch, output)
            return [([total], None) for total in totals(batch, losses)]
        assert output is not None, "slopes need a head"
        assert later is not None, "the parts above were done"
        targets: list[tuple[list[Tensor], list[Tensor] | None]] = []
        for slopes in later:
            known = {key: slope for key, slope in slopes.items() if slope is not None}
            targets.append(([output[key] for key in known], list(known.values())))
        return targets


@contextmanager
def multiplied_gates(part: Part, multiplier: Multiplier) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inside the block, gate weights of some layers are multiplied.

    Yields:
        Expert ids and α of every layer, filled by a forward.
    """
    used: list[tuple[Tensor, Tensor]] = []

    def scale(row: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        alpha, factor = multiplier(part.rows[row], index)
        used.append((index, alpha))
        return run(hidden, index, weight * factor.to(weight.dtype))

    with intercepted(part.anatomy, scale):
        yield used


def zeros(anatomy: Anatomy) -> Tensor:
    """Return sums to begin with [L, E], float64."""
    shape = (len(anatomy.layers), anatomy.shape.num_experts)
    return torch.zeros(shape, dtype=torch.float64, device=anatomy.device)


def token_count(tokens: Tensor) -> int:
    """Return how many tokens of windows [N, W] have a next one."""
    num_windows, length = tokens.shape
    return num_windows * (length - 1)


@contextmanager
def frozen(anatomy: Anatomy) -> Iterator[None]:
    """Inside the block autograd is on, and the model's own weights get no gradients."""
    trainable = [parameter for parameter in anatomy.model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _leaves(state: State | None) -> State:
    """The tensors of a state as leaves of a new graph."""
    if state is None:
        return {}
    leaves = {key: value.detach() for key, value in state.items()}
    for value in _floating(leaves).values():
        value.requires_grad_()
    return leaves


def _floating(state: State) -> State:
    """The tensors that slopes can be taken in."""
    return {key: value for key, value in state.items() if value.is_floating_point()}
