"""Text that is tested on must not have been seen before: what repeats it is refused, or left out."""

import numpy as np
from numpy.typing import NDArray

from criteria.text.windows import Windows
from experts.arrays import Ids, Marks
from experts.errors import ExciseError

RUN = 16  # tokens
SHARED = 0.5  # a window overlaps when more than this share of its runs is known


def check_disjoint(seen: Windows, validation: Windows, name: str = "calibration") -> None:
    """Refuse validation text that was already used.

    Args:
        seen: text that something was fitted to
        validation: text to be tested on
        name: the stage that used `seen`, for the message

    Raises:
        ExciseError: some validation windows repeat text of `seen`.
    """
    check_unseen(seen.tokens, validation, name, "for validate.data")


def check_unseen(seen: Ids, text: Windows, name: str, where: str) -> None:
    """Refuse text that was already used.

    Args:
        seen: token windows that something was fitted to [N, W]
        text: to be tested on
        name: the stage that used `seen`, for the message
        where: which setting names the text that is tested on, for the message

    Raises:
        ExciseError: some windows repeat what was seen.
    """
    if repeated := repeated_windows(seen, text):
        first = text.documents[text.document[repeated[0]]]
        raise ExciseError(
            f"{name} and validation text overlap: {len(repeated)} of {len(text)} validation windows "
            f"(the first in {first}) are {name} text too; use other files, another split or seed {where}"
        )


def without_repeats(windows: Windows, validation: Windows, among: Marks | None = None) -> Windows:
    """Leave out windows that hold text of validation windows which are mostly a repetition of them.

    Args:
        windows: N, that something is going to be fitted to
        validation: text to be tested on
        among: windows that may be left out [N]; None = all

    Returns:
        The other windows; all of them where nothing would be left.
    """
    repeated = repeated_windows(windows.tokens, validation)
    if not repeated:
        return windows
    tested = np.unique(_hashes_of_runs(validation.tokens[repeated]))
    holds = np.isin(_hashes_of_runs(windows.tokens), tested).any(axis=1)
    kept = np.flatnonzero(~holds if among is None else ~(holds & among))
    return windows.select(kept) if len(kept) else windows


def repeated_windows(seen: Ids, validation: Windows) -> list[int]:
    """Return the rows of validation windows most of whose 16-token runs also occur in windows seen [N, W]."""
    known = np.unique(_hashes_of_runs(seen))
    shared = np.isin(_hashes_of_runs(validation.tokens), known).mean(axis=1)
    return [int(row) for row in np.flatnonzero(shared > SHARED)]


def _hashes_of_runs(tokens: Ids) -> NDArray[np.uint64]:
    """A 64-bit hash of every run of tokens [N, W − RUN + 1]; of whole windows where those are shorter."""
    size = min(RUN, tokens.shape[1])
    runs = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.uint64), size, axis=1)
    factors = np.random.default_rng(0).integers(1, 2**63, size, dtype=np.uint64) | np.uint64(1)
    mixed = (runs + np.uint64(1)) * factors
    hashes: NDArray[np.uint64] = np.bitwise_xor.reduce(mixed ^ (mixed >> np.uint64(29)), axis=-1)
    return hashes
