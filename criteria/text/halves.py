"""Windows dealt in two halves, domain by domain: one is fitted, the other judges."""

import numpy as np

from criteria.text.windows import Windows
from experts.arrays import Ids


def in_halves(windows: Windows) -> Ids:
    """The half of every window, 0 or 1 [N]: the windows of a domain take turns, so each half has all domains.

    Where a domain ends with an odd number, the next one goes on in the other half: the halves are of one
    size, or one apart.
    """
    order = np.argsort(windows.domain, kind="stable")
    half = np.zeros(len(windows), dtype=np.int64)
    half[order[1::2]] = 1
    return half
