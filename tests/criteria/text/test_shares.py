"""How windows are divided among sources."""

import pytest

from criteria.text.shares import shares
from criteria.text.sources import Source
from experts.errors import ExciseError


def source(weight: float = 1.0) -> Source:
    return Source(stdlib="code", split="train", weight=weight)


def sampled(windows: int | None = None, weight: float = 1.0) -> Source:
    return Source.model_validate({"sampled": {"windows": windows}, "weight": weight})


def test_equal_weights_share_equally_and_the_first_take_the_rest() -> None:
    assert shares([source()] * 3, 8) == [3, 3, 2]
    assert shares([source(5)] * 3, 7) == [3, 2, 2]


def test_weights() -> None:
    """Of 10 windows 1 : 3 is 2.5 and 7.5: the first of equal fractions gets the last one."""
    assert shares([source(), source(3)], 10) == [3, 7]
    assert shares([source(0.2), source(0.7), source(0.1)], 10) == [2, 7, 1]
    assert shares([sampled(), source(3)], 64) == [16, 48]


def test_named_windows_come_first() -> None:
    assert shares([source(), sampled(6), source(3)], 14) == [2, 6, 6]
    assert shares([sampled(6)], 6) == [6]


@pytest.mark.parametrize(
    ("sources", "sequences", "message"),
    [
        ([source()] * 3, 2, "2 windows for 3 sources"),
        ([source(100), source()], 10, "leave none for its weight"),
        ([sampled(6)], 8, "sampled.windows asks for 6 windows and sequences for 8"),
        ([sampled(6), source()], 6, "asks for 6 windows and sequences for 6"),
    ],
)
def test_numbers_that_do_not_fit(sources: list[Source], sequences: int, message: str) -> None:
    with pytest.raises(ExciseError, match=message):
        shares(sources, sequences)
