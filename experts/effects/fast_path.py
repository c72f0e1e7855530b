"""Whether the fast paths hold on the model at hand: they are compared with whole forwards on a few cells."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experts.anatomy import Anatomy
from experts.effects.outcome import token_losses
from experts.effects.precision import fits_in_float32, in_float32
from experts.effects.removal import PositionReplay, RemovalBranch, only_at
from experts.errors import ExciseError, is_out_of_memory, is_own_mistake, one_line
from experts.modes import Mode, Scope
from experts.notes import log_traceback
from experts.sweep.branch import Branch
from experts.sweep.job import Job
from experts.sweep.record import CleanForward
from experts.sweep.sweep import sweep

# Largest disagreement with whole forwards that is rounding, in nats. A half-precision model is compared in
# its own precision only where float32 does not fit: two orders of summation differ by that much.
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
    """A fast path beside whole forwards.

    Attributes:
        gap: largest disagreement in nats; infinite where the fast path does not run
        reason: why the fast path cannot be used; empty where it holds
    """

    gap: float
    reason: str = ""


@dataclass(frozen=True)
class Cell:
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

    At single positions many interventions share a forward (packing); elsewhere a forward begins at the
    experts of the removal's layer (prefix caching).

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
        """Compare with whole forwards on cells of one window [1, W].

        A half-precision model is compared in float32 where memory allows: its rounding is larger than many
        effects.

        Raises:
            ExciseError: whole forwards fail, too.
        """
        if fits_in_float32(self.anatomy):
            with in_float32(self.anatomy) as wide:
                return replace(self, anatomy=wide)._compare(window)
        return self._compare(window)

    def _compare(self, window: Tensor) -> Comparison:
        cells, whole = self._reference(window)
        fast = _Cells(self, window, cells, whole=False)
        try:
            sweep(self.anatomy, fast)
        except FAILURES as error:
            if is_out_of_memory(error) or is_own_mistake(error):
                raise
            log_traceback(error, "measuring with whole forwards")
            return Comparison(float("inf"), f"does not run on this model ({one_line(error)})")
        gap = float((fast.effects() - whole).abs().max())
        if gap <= TOLERANCE[self.anatomy.model.dtype]:
            return Comparison(gap)
        return Comparison(gap, f"differs from plain replay by {gap:.2g} nats on this model")

    def _reference(self, window: Tensor) -> tuple[list[Cell], Tensor]:
        """Cells of a window, and their effects by whole forwards."""
        try:
            routing = _Routing(window)
            sweep(self.anatomy, routing)
            cells = self._cells(routing.forward)
            whole = _Cells(self, window, cells, whole=True)
            sweep(self.anatomy, whole)
        except FAILURES as error:
            if isinstance(error, ExciseError) or is_out_of_memory(error) or is_own_mistake(error):
                raise
            log_traceback(error)
            raise ExciseError(
                f"removals in mode {self.mode} cannot be measured on this model ({one_line(error)})"
            ) from error
        return cells, whole.effects()

    def _cells(self, clean: CleanForward) -> list[Cell]:
        """An active expert at three positions, in the lowest, the middle and the highest MoE layer."""
        last, num_layers = clean.tokens.shape[1] - 2, len(self.anatomy.layers)
        eye = torch.eye(self.anatomy.shape.num_experts, dtype=torch.bool, device=clean.tokens.device)
        rows = sorted({0, num_layers // 2, num_layers - 1})
        positions = sorted({last // 3, 2 * last // 3, last})
        places = itertools.product(rows, positions)
        return [Cell(row, t, eye[clean.index[row][0, t, 0]]) for row, t in places]


class _Routing(Job):
    """Which experts a window's tokens choose."""

    head = False

    def __init__(self, window: Tensor) -> None:
        self.forward = CleanForward.of(window)

    @property
    def batches(self) -> int:
        return 1

    def clean(self, batch: int) -> CleanForward:  # noqa: ARG002 - the only one
        return self.forward


class _Cells(Job):
    """Removals at the cells of one window. whole: by whole forwards, else by the fast path."""

    def __init__(self, path: FastPath, window: Tensor, cells: list[Cell], *, whole: bool) -> None:
        self.path, self.window, self.cells, self.is_whole = path, window, cells, whole
        self.measured: list[Tensor] = [torch.empty(0)] * len(cells)

    @property
    def batches(self) -> int:
        return 1

    def effects(self) -> Tensor:
        """ΔCE of all cells, one after the other: at the cell's position, or of the whole window."""
        return torch.cat([effect.reshape(-1) for effect in self.measured])

    def clean(self, batch: int) -> CleanForward:  # noqa: ARG002 - the only one
        at_positions = self.path.scope is Scope.POSITION
        return CleanForward.of(self.window, prefix=at_positions and not self.is_whole)

    def whole(self, batch: int) -> Iterator[Branch]:  # noqa: ARG002
        if self.is_whole:
            yield from map(self._whole_branch, range(len(self.cells)))

    def born(self, batch: int, row: int, clean: CleanForward) -> Iterator[Branch]:  # noqa: ARG002
        for number, cell in enumerate(self.cells):
            if cell.row == row and not self.is_whole:
                yield self._fast_branch(number)

    def arrived(self, batch: int, clean: CleanForward, logits: Tensor | None) -> None:  # noqa: ARG002
        assert logits is not None, "asked for"
        clean.losses = token_losses(logits, clean.tokens).double()

    def _fast_branch(self, number: int) -> Branch:
        cell, marks = self.cells[number], self.cells[number].marks
        position = None
        if self.path.scope is Scope.POSITION:
            position, marks = torch.tensor([cell.position], device=marks.device), marks[None]
        return RemovalBranch(
            row=cell.row, position=position, removed={cell.row: marks}, **self._means_and_ends(number)
        )

    def _whole_branch(self, number: int) -> Branch:
        cell = self.cells[number]
        common = self._means_and_ends(number)
        if self.path.scope is not Scope.POSITION:
            return RemovalBranch(row=None, removed={cell.row: cell.marks}, **common)
        marks = only_at(self.window, cell.position, cell.marks)
        return PositionReplay(row=None, removed={cell.row: marks}, read=cell.position, **common)

    def _means_and_ends(self, number: int) -> dict[str, Any]:
        """What every branch has: what removal means, and where its effect goes."""

        def take(delta: Tensor, _: Tensor) -> None:
            self.measured[number] = delta

        return {"mode": self.path.mode, "means": self.path.means, "take": take}
