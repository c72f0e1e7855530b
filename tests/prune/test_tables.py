"""Numbers as text: no −0.000, whatever is printed."""

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune.audit import curve_tables
from prune.audit import report as audit_report
from prune.compare import cost_tables, difference_tables, plan_tables
from prune.compare import report as comparison_report
from prune.console.show import table
from prune.recover import card as recovery_card
from prune.recover import report as recovery_report
from prune.recover import training
from prune.run import card, report, verdicts
from prune.tables import Table, percent, plain, probability, removed, signed, spread

NEGATIVE_ZERO = re.compile(r"-0(\.0*)?%?(?![\d.])")


@given(st.floats(-1, 1) | st.sampled_from([-0.0, -1e-9, -4e-5, -5e-5, -0.004, -0.005]), st.integers(0, 6))
def test_nothing_is_less_than_nothing(value: float, digits: int) -> None:
    shown = (signed(value, digits), plain(value, digits), percent(value), spread(value, abs(value), digits))
    assert not any(NEGATIVE_ZERO.search(text) for text in shown), shown
    assert float(plain(value, digits)) == pytest.approx(value, abs=0.5 * 10**-digits + 1e-12)


def test_numbers_as_text() -> None:
    assert (signed(-0.00004), signed(0.00004), signed(-0.00005001), signed(None)) == (
        "+0.0000",
        "+0.0000",
        "-0.0001",
        "nan",
    )
    assert (plain(-0.0004, 3), plain(0.5756, 3), percent(-0.004), percent(-0.006)) == (
        "0.000",
        "0.576",
        "0%",
        "-1%",
    )
    assert spread(-1e-6, 0.0722) == "+0.0000 ± 0.0722"
    assert (probability(0.048), probability(2e-5), probability(None)) == ("0.048", "<1e-04", "nan")


def test_a_table_shows_its_cells_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """What stands in brackets is no markup: neither an interval that is missing nor the folder of somebody's
    criterion.
    """
    cells = ("nan [nan, nan]", "[/old]/mine.py:f", "[bold]", "a\\[b]", ":smile:")
    table(Table("", ("d [95 %]", "[red]", "c", "d", "e"), [cells]))
    shown = capsys.readouterr().out
    assert all(text in shown for text in (*cells, "[95 %]", "[red]"))


def test_a_share_of_experts_is_told_from_its_neighbours() -> None:
    """128 experts: 12 and 13 % would both be 1/8 and its neighbour."""
    shares = [count / 128 for count in range(1, 128)]
    assert len({removed(share) for share in shares}) == 127
    assert (removed(0.5), removed(0.25), removed(0.125), removed(1 / 3)) == ("50%", "25%", "12.5%", "33.33%")


REPORTS = [
    *(report, verdicts, card),
    *(comparison_report, plan_tables, cost_tables, difference_tables),
    *(audit_report, curve_tables),
    *(recovery_report, recovery_card, training),
]


@pytest.mark.parametrize("module", REPORTS)
def test_reports_take_their_numbers_from_one_place(module: object) -> None:
    """A format of their own would bring −0.000 back."""
    source = Path(module.__file__).read_text(encoding="utf-8")  # type: ignore[attr-defined]
    assert not re.findall(r":[+z ]*\.?\d*[f%]\}", source)


@pytest.mark.parametrize("module", REPORTS)
def test_reports_name_no_types(module: object) -> None:
    """What is printed speaks of leads and overlaps, not of the classes that describe the JSON files."""
    source = Path(module.__file__).read_text(encoding="utf-8")  # type: ignore[attr-defined]
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    assert not [text for text in texts if isinstance(text, str) and re.search(r"[a-z]Json\b", text)]
