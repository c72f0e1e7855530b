"""The two halves that a text is dealt in: one is fitted, the other judges."""

from dataclasses import replace

import numpy as np

from criteria.text.halves import in_halves
from tests.support.inputs import windows


def test_both_halves_have_every_domain() -> None:
    """Also where sources come one after the other, and where one has a window more."""
    text = replace(windows(9), domain=np.array([0, 0, 0, 0, 0, 1, 1, 1, 1]))
    assert in_halves(text).tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]


def test_windows_of_a_domain_take_turns_wherever_they_are() -> None:
    """Domains in turn: windows 0, 2, 4 and 1, 3, 5. The second goes on where the first one ended."""
    assert in_halves(windows(6)).tolist() == [0, 1, 1, 0, 0, 1]
