"""Whether the fast paths hold on the model at hand: they are compared with plain replay on a few cells."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from experts.anatomy import Anatomy
from experts.effects.packing import packed
from experts.effects.precision import fits_in_float32, in_float32
from experts.effects.replay import replay, replay_position
from experts.effects.stream import CleanForward, clean_forward, entered
from experts.errors import ExciseError, is_out_of_memory, is_own_mistake, one_line
from experts.modes import Mode, Scope
from experts.notes import log_traceback

# Largest disagreement with replay that is rounding, in nats. A half-precision model is compared in its own
# precision only where float32 does not fit: two orders of summation differ by that much.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
# What a model may raise when it is run in a way it was not made for.
FAILURES = (
    ExciseError,
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    KeyError,
    IndexError,
    AssertionError,
    NotImplementedError,
)


@dataclass(frozen=True)
class Comparison:
    """A fast path beside plain replay.

    Attributes:
        gap: largest disagreement in nats; infinite where the fast path does not run
        reason: why the fast path cannot be used; empty where it holds
    """

    gap: float
    reason: str = ""


@dataclass(frozen=True)
class _Cell:
    """One removal of the comparison: an expert that is active at a token.

    Attributes:
        row: place of the layer among the L MoE layers
        position: of the token
        marks: True at the expert, bool [E]
    """

    row: int
    position: int
    marks: Tensor


@dataclass(frozen=True)
class FastPath:
    """The faster way to measure removals in one scope.

    At single positions many interventions share a forward (packing); elsewhere a forward begins at the layer
    of the removal (prefix caching).

    Attributes:
        anatomy: the model
        scope: where experts are removed
        mode: what removal means
        means: mean output of every expert [L, E, H], for Mode.MEAN
    """

    anatomy: Anatomy
    scope: Scope
    mode: Mode
    means: Tensor | None

    def compare(self, window: Tensor) -> Comparison:
        """Compare with plain replay on cells of one window [1, W].

        A half-precision model is compared in float32 where memory allows: its rounding is larger than many
        effects.

        Raises:
            ExciseError: replay itself fails.
        """
        if fits_in_float32(self.anatomy):
            with in_float32(self.anatomy.model):
                return self._compare(window)
        return self._compare(window)

    def _compare(self, window: Tensor) -> Comparison:
        cells, replayed = self._reference(window)
        try:
            fast = torch.cat(list(self._losses(window, cells)))
            gap = float((fast - replayed).abs().max())
        except FAILURES as error:
            if is_out_of_memory(error) or is_own_mistake(error):
                raise
            log_traceback(error, "measuring with whole forwards")
            return Comparison(float("inf"), f"does not run on this model ({one_line(error)})")
        if gap <= TOLERANCE[self.anatomy.model.dtype]:
            return Comparison(gap)
        return Comparison(gap, f"differs from plain replay by {gap:.2g} nats on this model")

    def _reference(self, window: Tensor) -> tuple[list[_Cell], Tensor]:
        """Cells of a window, and their losses by plain replay."""
        try:
            cells = self._cells(clean_forward(self.anatomy, window, probabilities=False))
            return cells, torch.cat([self._replayed(window, cell) for cell in cells])
        except FAILURES as error:
            if isinstance(error, ExciseError) or is_out_of_memory(error) or is_own_mistake(error):
                raise
            log_traceback(error)
            raise ExciseError(
                f"removals in mode {self.mode} cannot be measured on this model ({one_line(error)})"
            ) from error

    def _cells(self, clean: CleanForward) -> list[_Cell]:
        """An active expert at three positions, in the lowest, the middle and the highest MoE layer."""
        last, num_layers = clean.tokens.shape[1] - 2, len(self.anatomy.layers)
        eye = torch.eye(self.anatomy.shape.num_experts, dtype=torch.bool, device=clean.tokens.device)
        rows = sorted({0, num_layers // 2, num_layers - 1})
        positions = sorted({last // 3, 2 * last // 3, last})
        places = itertools.product(rows, positions)
        return [_Cell(row, t, eye[clean.index[row][0, t, 0]]) for row, t in places]

    def _replayed(self, window: Tensor, cell: _Cell) -> Tensor:
        """Losses by whole forwards: at the cell's position, or of the whole window."""
        clean = CleanForward(window, window.new_empty(0), None)
        removed = {cell.row: cell.marks}
        if self.scope is Scope.POSITION:
            at_position = replay_position(self.anatomy, clean, cell.position, removed, self.mode, self.means)
            return at_position[0][None]
        return replay(self.anatomy, clean, removed, self.mode, self.means)[0][0]

    def _losses(self, window: Tensor, cells: list[_Cell]) -> Iterator[Tensor]:
        """The same losses by the fast path."""
        at_positions = self.scope is Scope.POSITION
        clean = clean_forward(self.anatomy, window, prefix=at_positions, probabilities=False)
        for cell in cells:
            if at_positions:
                position = torch.tensor([cell.position], device=window.device)
                removed = {cell.row: cell.marks[None]}
                yield packed(self.anatomy, clean, position, removed, self.mode, self.means)[0]
            else:
                inside = entered(self.anatomy, clean, self.anatomy.layers[cell.row].index)
                removed = {cell.row: cell.marks}
                yield replay(self.anatomy, clean, removed, self.mode, self.means, inside)[0][0]
