"""Which windows of a text are taken: a seed decides, the same on every machine.

The cost of reading and tokenising follows the number of windows, not the size of the text.
"""

from collections.abc import Callable, Iterator, Sequence
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
        found: how many it has
    """

    def __init__(self, found: int) -> None:
        super().__init__(found)
        self.found = found


def sample(
    reader: Reader,
    cutter: Cutter,
    wanted: int,
    seed: Sequence[int],
    again: Callable[[], None],
) -> list[Window]:
    """Return `wanted` windows in the order of the text.

    Of a small text all windows are made, and any may be chosen. Of a large one cells are visited in a random
    order, and each yields at most one window.

    Args:
        reader: of the text
        cutter: makes windows of it
        wanted: number of windows
        seed: of the choice
        again: called before text is read once more

    Raises:
        TooFewError: the text has fewer windows.
    """
    if reader.weight(SMALL) <= SMALL:
        windows = list(cutter.windows(every(reader, SMALL)))
        return [windows[number] for number in choice(len(windows), wanted, seed)]
    for per_token in PER_TOKEN:
        again()
        windows = visited(reader, cutter, wanted, seed, per_token)
        if len(windows) == wanted:
            return windows
    return counted(reader, cutter, wanted, seed, again)


def every(reader: Reader, size: int) -> Iterator[Piece]:
    """Yield all pieces in the order of the text, read in cells of `size` bytes."""
    for _, pieces in reader.read(size, range(reader.cells(size))):
        yield from pieces


def choice(available: int, wanted: int, seed: Sequence[int]) -> list[int]:
    """Return the numbers of the windows that are taken, ascending.

    Raises:
        TooFewError: fewer are available than wanted.
    """
    if available < wanted:
        raise TooFewError(available)
    numbers: list[int] = np.random.default_rng(seed).choice(available, wanted, replace=False).tolist()
    return sorted(numbers)


def visited(reader: Reader, cutter: Cutter, wanted: int, seed: Sequence[int], per_token: int) -> list[Window]:
    """Return at most `wanted` windows, at most one of every cell, so that they lie apart.

    Short documents of several cells are joined. Where cells are clearly too small, the visit ends early:
    larger ones are worth another try.

    Args:
        reader: of the text
        cutter: makes windows of it
        wanted: number of windows
        seed: of the order of cells and of the places in them
        per_token: bytes of a cell for every token of a window
    """
    size = max(per_token * cutter.length, LEAST_BYTES, -(-reader.weight(2**63) // MOST_CELLS))
    order = np.random.default_rng(seed).permutation(reader.cells(size))
    packing = Packing(cutter)
    windows: dict[int, Window] = {}  # cell -> its window
    done = 0  # cells
    while len(windows) < wanted and done < len(order):
        if per_token < PER_TOKEN[-1] and done > 4 * wanted > 16 * len(windows):
            break
        batch = order[done : done + _batch_size(wanted - len(windows), done, size)].tolist()
        pieces_of_cells = dict(reader.read(size, sorted(batch)))
        for cell in batch:
            rng = np.random.default_rng([*seed, cell])
            window = _of_cell(pieces_of_cells.get(cell, []), cutter, packing, rng)
            if window is not None:
                windows[cell] = window
            if len(windows) == wanted:
                break
        done += len(batch)
    return [windows[cell] for cell in sorted(windows)]


def _batch_size(missing: int, done: int, size: int) -> int:
    """Cells to visit next: some more than windows are missing, or as many as before where cells hold little.

    Args:
        missing: windows
        done: cells so far
        size: bytes of a cell
    """
    least = missing + missing // 4 + 8
    return max(least, min(done, HELD // size))


def _of_cell(
    pieces: list[Piece],
    cutter: Cutter,
    packing: Packing,
    rng: np.random.Generator,
) -> Window | None:
    """A window of a cell, from the document at a random place on; None if the cell has too little text."""
    ends = np.cumsum([len(piece.text) for piece in pieces])
    if not pieces or not ends[-1]:
        return None
    first = int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))
    for piece in [*pieces[first:], *pieces[:first]]:
        if window := cutter.window_of(piece, lambda slots: int(rng.integers(slots)), packing):
            return window
    return None


def counted(
    reader: Reader,
    cutter: Cutter,
    wanted: int,
    seed: Sequence[int],
    again: Callable[[], None],
) -> list[Window]:
    """Choose among all windows of a large text, in bounded memory: they are counted first, then made again.

    Args:
        reader: of the text
        cutter: makes windows of it
        wanted: number of windows
        seed: of the choice
        again: called before text is read once more

    Raises:
        TooFewError: the text has fewer windows.
    """
    again()
    available = sum(1 for _ in cutter.windows(every(reader, BLOCK)))
    taken = set(choice(available, wanted, seed))
    again()
    windows = enumerate(cutter.windows(every(reader, BLOCK)))
    return list(islice((window for number, window in windows if number in taken), wanted))
