"""Which windows of a text are taken: a seed decides, the same on every machine.

The cost of reading and tokenising follows the number of windows, not the size of the text.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from criteria.text.cutting import Cutter, Packing, Window
from criteria.text.readers.pieces import BLOCK, SMALL, Piece, Reader

# Bytes of a cell for every token of a window; the second where tokens are long, or rows mostly other things.
PER_TOKEN = (16, 64)
HELD = 2**26  # bytes of cells that are in memory at once, unless more windows than that are wanted
LEAST_BYTES = 2**12  # of a cell
MOST_CELLS = 2**20  # of a text


class TooFewError(Exception):
    """The text has fewer windows than are wanted.

    Attributes:
        available: how many it has
    """

    def __init__(self, available: int) -> None:
        super().__init__(available)
        self.available = available


@dataclass(frozen=True)
class Sampler:
    """Takes windows from one text.

    Attributes:
        reader: of the text
        cutter: makes windows of it
        wanted: number of windows
        seed: of the choice
        again: called before text is read once more
    """

    reader: Reader
    cutter: Cutter
    wanted: int
    seed: Sequence[int]
    again: Callable[[], None]

    def sample(self) -> list[Window]:
        """Return `wanted` windows in the order of the text.

        Of a small text all windows are made, and any may be chosen. Of a large one cells are visited in a
        random order, and each yields at most one window.

        Raises:
            TooFewError: the text has fewer windows.
        """
        if self.reader.weight(SMALL) <= SMALL:
            windows = list(self.cutter.windows(all_pieces(self.reader, SMALL)))
            return [windows[number] for number in self._choose(len(windows))]
        for per_token in PER_TOKEN:
            self.again()
            windows = self.from_cells(per_token)
            if len(windows) == self.wanted:
                return windows
        return self.from_all()

    def from_cells(self, per_token: int) -> list[Window]:
        """Return at most `wanted` windows, at most one of every cell, so that they lie apart.

        Short documents of several cells are joined. Where cells are clearly too small, the visit ends early:
        larger ones are worth another try.

        Args:
            per_token: bytes of a cell for every token of a window
        """
        size = self._cell_size(per_token)
        order = np.random.default_rng(self.seed).permutation(self.reader.cells(size))
        packing = Packing(self.cutter)
        windows: dict[int, Window] = {}  # cell -> its window
        done = 0  # cells
        while len(windows) < self.wanted and done < len(order):
            if per_token < PER_TOKEN[-1] and done > 4 * self.wanted > 16 * len(windows):
                break
            batch = order[done : done + _batch_size(self.wanted - len(windows), done, size)].tolist()
            pieces_of_cells = dict(self.reader.read(size, sorted(batch)))
            for cell in batch:
                window = self._of_cell(cell, pieces_of_cells.get(cell, []), packing)
                if window is not None:
                    windows[cell] = window
                if len(windows) == self.wanted:
                    break
            done += len(batch)
        return [windows[cell] for cell in sorted(windows)]

    def from_all(self) -> list[Window]:
        """Choose among all windows of a large text in bounded memory: count them, then make them again.

        Raises:
            TooFewError: the text has fewer windows.
        """
        self.again()
        available = sum(1 for _ in self.cutter.windows(all_pieces(self.reader, BLOCK)))
        numbers = set(self._choose(available))
        self.again()
        windows = enumerate(self.cutter.windows(all_pieces(self.reader, BLOCK)))
        return list(islice((window for number, window in windows if number in numbers), self.wanted))

    def _choose(self, available: int) -> list[int]:
        """The numbers of the windows that are taken, ascending."""
        if available < self.wanted:
            raise TooFewError(available)
        rng = np.random.default_rng(self.seed)
        numbers: list[int] = rng.choice(available, self.wanted, replace=False).tolist()
        return sorted(numbers)

    def _cell_size(self, per_token: int) -> int:
        """Bytes of a cell."""
        fewest_for_text = -(-self.reader.weight(2**63) // MOST_CELLS)
        return max(per_token * self.cutter.length, LEAST_BYTES, fewest_for_text)

    def _of_cell(self, cell: int, pieces: list[Piece], packing: Packing) -> Window | None:
        """A window of a cell, from the document at a random place on; None if there is too little text."""
        ends = np.cumsum([len(piece.text) for piece in pieces])
        if not pieces or not ends[-1]:
            return None
        rng = np.random.default_rng([*self.seed, cell])
        first = int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))
        for piece in [*pieces[first:], *pieces[:first]]:
            if window := self.cutter.window_of(piece, lambda slots: int(rng.integers(slots)), packing):
                return window
        return None


def all_pieces(reader: Reader, size: int) -> Iterator[Piece]:
    """Yield all pieces in the order of the text, read in cells of `size` bytes."""
    for _, pieces in reader.read(size, range(reader.cells(size))):
        yield from pieces


def _batch_size(missing: int, done: int, size: int) -> int:
    """Cells to visit next: some more than windows are missing, or as many as before where cells hold little.

    Args:
        missing: windows
        done: cells so far
        size: bytes of a cell
    """
    least = missing + missing // 4 + 8
    return max(least, min(done, HELD // size))
