"""Which windows of a text are taken: a seed decides, the same on every machine.

What is read and tokenised follows the number of windows, not the size of the text.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

from criteria.text.cutting import Cutter, Packing, Window
from criteria.text.readers.pieces import BLOCK, SMALL, Piece, Reader

# Bytes of a cell for every token of a window; the second where tokens are long, or rows mostly other things.
PER_TOKEN = (16, 64)
HELD = 2**26  # bytes of cells that are in memory at once, unless more windows than that are wanted
LEAST, MOST = 2**12, 2**20  # bytes of a cell at least; cells at most


class TooFewError(Exception):
    """The text has fewer windows than are wanted. found: how many."""

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
    """`wanted` windows in the order of the text. Raises TooFewError.

    Of a small text all windows are made and any may be chosen. Of a large one cells are visited in a random
    order, and each gives a window. again: called before what was read is read once more.
    """
    if reader.weight(SMALL) <= SMALL:
        found = list(cutter.windows(every(reader, SMALL)))
        return [found[i] for i in choice(len(found), wanted, seed)]
    for per_token in PER_TOKEN:
        again()
        chosen = visited(reader, cutter, wanted, seed, per_token)
        if len(chosen) == wanted:
            return chosen
    return counted(reader, cutter, wanted, seed, again)


def every(reader: Reader, size: int) -> Iterator[Piece]:
    """All pieces in the order of the text, read in cells of `size` bytes."""
    for _, pieces in reader.read(size, range(reader.cells(size))):
        yield from pieces


def choice(found: int, wanted: int, seed: Sequence[int]) -> list[int]:
    """Numbers of the windows that are taken, ascending."""
    if found < wanted:
        raise TooFewError(found)
    return sorted(np.random.default_rng(seed).choice(found, wanted, replace=False).tolist())


def visited(reader: Reader, cutter: Cutter, wanted: int, seed: Sequence[int], per_token: int) -> list[Window]:
    """At most `wanted` windows: at most one of every cell, so that they lie apart.

    Short documents of several cells are joined. per_token: bytes of a cell for every token of a window; where
    they are clearly too few, larger cells are worth another try.
    """
    size = max(per_token * cutter.length, LEAST, -(-reader.weight(2**63) // MOST))
    order = np.random.default_rng(seed).permutation(reader.cells(size))
    packing, at = Packing(cutter), 0
    found: dict[int, Window] = {}
    while len(found) < wanted and at < len(order):
        if per_token < PER_TOKEN[-1] and at > 4 * wanted > 16 * len(found):
            break
        batch = order[at : at + _next(wanted - len(found), at, size)].tolist()
        cells = dict(reader.read(size, sorted(batch)))
        for cell in batch:
            window = _of_cell(cells.get(cell, []), cutter, packing, np.random.default_rng([*seed, cell]))
            if window is not None:
                found[cell] = window
            if len(found) == wanted:
                break
        at += len(batch)
    return [found[cell] for cell in sorted(found)]


def _next(missing: int, before: int, size: int) -> int:
    """Cells to visit next: some more than windows are missing; as many as before where cells hold little."""
    least = missing + missing // 4 + 8
    return max(least, min(before, HELD // size))


def _of_cell(
    pieces: list[Piece],
    cutter: Cutter,
    packing: Packing,
    rng: np.random.Generator,
) -> Window | None:
    """A window of a cell, from the document on in which a random place lies; None = too little text."""
    ends = np.cumsum([len(piece.text) for piece in pieces])
    if not pieces or not ends[-1]:
        return None
    first = int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))
    for piece in [*pieces[first:], *pieces[:first]]:
        if window := cutter.one(piece, lambda slots: int(rng.integers(slots)), packing):
            return window
    return None


def counted(
    reader: Reader,
    cutter: Cutter,
    wanted: int,
    seed: Sequence[int],
    again: Callable[[], None],
) -> list[Window]:
    """As of a small text, in bounded memory, for most of what a large text has.

    The windows are counted first, and made once more.
    """
    again()
    found = sum(1 for _ in cutter.windows(every(reader, BLOCK)))
    taken = set(choice(found, wanted, seed))
    again()
    windows = enumerate(cutter.windows(every(reader, BLOCK)))
    return list(islice((window for number, window in windows if number in taken), wanted))
