"""The two halves of a text, domain by domain: a choice or a fit, and its proof, are kept apart."""

import numpy as np

from criteria.text.windows import Windows
from experts.arrays import Ids, Marks
from experts.errors import ExciseError


def in_halves(windows: Windows) -> Ids:
    """The half of every window, 0 or 1 [N]: the windows of a domain take turns, so each half has all domains.

    Where a domain ends with an odd number, the next one goes on in the other half: the halves are of one
    size, or one apart.
    """
    order = np.argsort(windows.domain, kind="stable")
    half = np.zeros(len(windows), dtype=np.int64)
    half[order[1::2]] = 1
    return half


def halved(windows: Windows) -> tuple[Windows, Windows]:
    """The windows of both halves: text to fit to, and text to judge that by."""
    half = in_halves(windows)
    return windows.select(np.flatnonzero(half == 0)), windows.select(np.flatnonzero(half == 1))


def first_half(windows: Windows, refusal: str) -> Marks:
    """Mark the windows of one half [N].

    Args:
        windows: N of them
        refusal: what is said where there are fewer than two

    Raises:
        ExciseError: there are fewer than two.
    """
    if len(windows) < 2:
        raise ExciseError(refusal)
    first: Marks = in_halves(windows) == 0
    return first
