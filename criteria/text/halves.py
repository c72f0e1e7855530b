"""The two halves of a text, on which a choice and its proof are kept apart."""

import numpy as np

from criteria.text.windows import Windows
from experts.arrays import Marks
from experts.errors import ExciseError


def first_half(windows: Windows, refusal: str) -> Marks:
    """Mark the windows of one half [N]: they are dealt in turns, domain by domain.

    Args:
        windows: N of them
        refusal: what is said where there are fewer than two

    Raises:
        ExciseError: there are fewer than two.
    """
    if len(windows) < 2:
        raise ExciseError(refusal)
    marks = np.zeros(len(windows), dtype=bool)
    marks[np.argsort(windows.domain, kind="stable")[::2]] = True
    return marks
