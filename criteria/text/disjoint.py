"""Text that is tested on must not have been seen before: windows that repeat others are found and refused."""

import numpy as np
from numpy.typing import NDArray

from criteria.text.windows import Windows
from experts.arrays import Ids
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
    if repeated := overlap(seen, validation):
        first = validation.documents[validation.document[repeated[0]]]
        raise ExciseError(
            f"{name} and validation text overlap: {len(repeated)} of {len(validation)} validation windows "
            f"(the first in {first}) are {name} text too; use other files or another split for validate.data"
        )


def overlap(seen: Windows, validation: Windows) -> list[int]:
    """Return the rows of validation windows most of whose 16-token runs also occur in the windows seen."""
    known = np.unique(_hashes_of_runs(seen.tokens))
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
