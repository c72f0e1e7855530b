"""Criteria by name: rows, baselines, parametrised ones, and functions of the user."""

import itertools
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from criteria.budget import from_keep
from criteria.by_name import resolve
from criteria.registry import CRITERIA
from criteria.scores import Scores, save, score
from criteria.selection import plan_for
from experts.errors import ExciseError
from experts.shape import Shape
from tests.support.micro import micro_statistics

NOTHING = np.zeros((1, 3), dtype=bool)
NO_FAMILIES = (
    "3,1,mean",
    "12,1,mean",
    "01,1,sum",
    "1,012,mean",
    "1,,mean",
    ",1,mean",
    "1,1",
    "1,1,max",
    "1,1,mean,",
    "²,1,mean",
    " 1,1,mean",
)


def test_random_is_seeded() -> None:
    found = micro_statistics()
    first = resolve("random").score(found)
    np.testing.assert_array_equal(first, resolve("random:0").score(found))
    assert not np.array_equal(first, resolve("random:1").score(found))


def test_reversed_of_reversed() -> None:
    found = micro_statistics()
    np.testing.assert_array_equal(
        resolve("reversed:reversed:reap").score(found), resolve("reap").score(found)
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raep", r"unknown criterion 'raep'; did you mean reap\?"),
        ("reversed:utilisation", r"unknown criterion 'utilisation'; did you mean utilization\?"),
        ("zzzzzz", r"unknown criterion 'zzzzzz'; `excise criteria` lists them"),
        *((f"family:{name}", r"expected family:<α>,<β>,mean or sum") for name in NO_FAMILIES),
        ("missing.py:f", r"no file missing\.py"),
        ("random:²", "unknown criterion"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ExciseError, match=message):
        resolve(name)


def test_user_function(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        '"""Mine."""\n\n\n'
        'def fewest(statistics):\n    """Rare experts first."""\n    return -statistics.count\n\n\n'
        "def flat(statistics):\n    return [1.0]\n\n\n"
        "def empty(statistics):\n    return statistics.count * float('nan')\n"
    )
    found = micro_statistics()
    mine = resolve(f"{file}:fewest")
    assert mine.formula == "Rare experts first."
    np.testing.assert_array_equal(score(mine, found, (0,), NOTHING, "", "").values, [[-1, -2, -3]])
    with pytest.raises(ExciseError, match=r"returned shape \(1,\), expected \[L, E\] = \(1, 3\)"):
        score(resolve(f"{file}:flat"), found, (0,), NOTHING, "", "")
    with pytest.raises(ExciseError, match="gave nan to expert 0 of layer 0, which 1 tokens reached"):
        score(resolve(f"{file}:empty"), found, (0,), NOTHING, "", "")
    for body, message in [
        ("{}.x", "AttributeError"),
        ("statistics[0]", "TypeError"),
        ("1 / 0", "ZeroDivisionError"),
        ("exit(7)", "SystemExit"),
        ("'abc'", "ValueError"),
    ]:
        file.write_text(f"def bad(statistics):\n    return {body}\n")
        with pytest.raises(ExciseError, match=f"mine.py:bad: failed with {message}"):
            score(resolve(f"{file}:bad"), found, (0,), NOTHING, "", "")
    file.write_text("def mutate(statistics):\n    statistics.moments[:] = 0\n    return statistics.count\n")
    with pytest.raises(ExciseError, match="read-only"):
        score(resolve(f"{file}:mutate"), found, (0,), NOTHING, "", "")
    with pytest.raises(ExciseError, match="has no function 'nope'"):
        resolve(f"{file}:nope")
    file.write_text("def broken(:\n")
    with pytest.raises(ExciseError, match=r"mine\.py cannot be imported"):
        resolve(f"{file}:broken")


def test_families_are_those_of_the_moments() -> None:
    """Every name that is accepted has a score, before any text is read."""
    found, digits = (
        micro_statistics(),
        ["", *"0123", *(a + b for a in "012" for b in "012"), "012", "-1", "²"],
    )
    accepted = []
    for alpha, beta, kind in itertools.product(digits, digits, ("mean", "sum")):
        with suppress(ExciseError):
            criterion = resolve(f"family:{alpha},{beta},{kind}")
            accepted.append((alpha, beta, kind))
            assert criterion.score(found).shape == (1, 3)
    assert accepted == list(itertools.product("012", "012", ("mean", "sum")))


@pytest.mark.parametrize(
    ("docstring", "formula"),
    [
        ("", "mine"),
        ("   ", "mine"),
        ("\\n\\n   \\n", "mine"),
        ("\\n  Rare first.\\n\\n  And more.\\n", "Rare first."),
        ("Rare.", "Rare."),
    ],
)
def test_docstrings_that_say_nothing(docstring: str, formula: str, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text(f'def mine(statistics):\n    "{docstring}"\n    return statistics.count\n')
    assert resolve(f"{tmp_path}/f.py:mine").formula == formula


def test_descriptions_that_are_no_text(tmp_path: Path) -> None:
    body = (
        "class Rare:\n    __doc__ = 5\n"
        "    def __call__(self, statistics):\n        return statistics.count\n"
        "mine = Rare()\n"
    )
    (tmp_path / "f.py").write_text(body)
    assert resolve(f"{tmp_path}/f.py:mine").formula == "5"


def test_no_data_is_no_reason_to_keep(tmp_path: Path) -> None:
    """A share of nothing, x / 0: an infinite score of an expert that no token reached would be kept before
    all others.
    """
    (tmp_path / "f.py").write_text(
        "import numpy as np\ndef mine(s):\n    with np.errstate(all='ignore'):\n        return 1 / s.count\n"
    )
    found = micro_statistics()
    moments = found.moments.copy()
    moments[0, 1] = 0
    made = score(resolve(f"{tmp_path}/f.py:mine"), replace(found, moments=moments), (0,), NOTHING, "", "")
    np.testing.assert_array_equal(made.values, [[1, np.nan, 1 / 3]])
    assert plan_for(made, from_keep(Shape((0,), 3, 1), 2, "layer"), Shape((0,), 3, 1)).kept == {0: (0, 2)}


def test_score_files(tmp_path: Path) -> None:
    found = micro_statistics()
    table = [score(CRITERIA[name], found, (0,), NOTHING, "abc", "d") for name in ("reap", "utilization")]
    save(tmp_path / "s.safetensors", table)
    back = Scores.read(tmp_path / "s.safetensors", stub_model((0,), 3, "abc"), criterion="reap")
    np.testing.assert_array_equal(back.values, table[0].values)
    assert (back.formula, back.data, back.text) == ("mean g·‖f‖", "d", None)
    for name, model, message in [
        ("raep", ((0,), 3, "abc"), r"no scores of 'raep'; it has \['reap', 'utilization'\]"),
        ("reap", ((0,), 3, "xyz"), r"scores of another model \(fingerprint abc, this one has xyz\)"),
        ("reap", ((0, 1), 3, "abc"), r"the model has L, E = 2, 3"),
        ("reap", ((1,), 3, "abc"), "for layers 0"),
        ("reap", ((0,), 4, "abc"), r"the model has L, E = 1, 4"),
    ]:
        with pytest.raises(ExciseError, match=message):
            Scores.read(tmp_path / "s.safetensors", stub_model(*model), criterion=name)
    (tmp_path / "s.safetensors").write_bytes(b"x")
    with pytest.raises(ExciseError, match="not a score file"):
        Scores.read(str(tmp_path / "s.safetensors"), stub_model((0,), 3, "abc"), criterion="reap")


def stub_model(layers: tuple[int, ...], num_experts: int, fingerprint: str) -> Any:
    """As much of a model as its scores are held against."""
    return SimpleNamespace(shape=Shape(layers, num_experts, 1), fingerprint=fingerprint, layout=None)
