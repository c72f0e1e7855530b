"""A verdict by domain that cannot come about is said before the work."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experts.disk.names import recipes_folder
from prune.compare.comparison import ComparisonRun
from prune.forecast.forecast import forecast
from prune.recipe.read import read_recipe, recipe_file
from prune.run.pipeline import Run
from prune.session.checked import checked_for
from prune.session.domain_verdicts import domain_notes
from prune.session.prepare import prepare
from prune.session.session import Session
from validate.statistics import Correction, corrected
from validate.verdict import ALPHA

COUNTED = (
    "20 random plans give no verdict by domain: counted, no p of 2 domains falls below 0.095 (Holm); "
    "take validate.random_plans=39, or validate.chance=normal"
)
# Of the embedded model: said why in each, and an audit tests no plans.
DEMOS = {"demo", "demo-refit", "demo-heal", "demo-audit"}

SOURCE = "{stdlib: %s, split: test, domain: a}"


def notes_of(name: str, *overrides: str) -> list[str]:
    recipe: Any = SimpleNamespace(recipe=read_recipe(recipe_file(name), overrides))
    return domain_notes(recipe)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), [COUNTED]),
        (("validate.random_plans=38",), [COUNTED.replace("20", "38", 1).replace("0.095", "0.051")]),
        (("validate.random_plans=39",), []),
        (("validate.chance=normal",), []),
        (("validate.data={stdlib: code, split: test}",), []),
        ((f"validate.data=[{SOURCE % 'code'}, {SOURCE % 'prose'}]",), []),
    ],
)
def test_when_it_is_said(overrides: tuple[str, ...], expected: list[str]) -> None:
    assert notes_of("demo", *overrides) == expected


@pytest.mark.parametrize(("domains", "plans"), [(2, 39), (3, 59), (5, 99)])
def test_so_many_are_enough_and_one_less_is_not(domains: int, plans: int) -> None:
    """The plan is better than all random plans in every domain: Holm's p as statsmodels has it."""
    data = ", ".join(f"{{stdlib: code, split: test, domain: d{number}}}" for number in range(domains))
    for count in (plans - 1, plans):
        p = corrected([1 / (count + 1)] * domains, Correction.HOLM)
        said = notes_of("demo", f"validate.data=[{data}]", f"validate.random_plans={count}")
        assert bool(np.all(p > ALPHA)) == bool(said)


def test_recipes_that_come_with_excise_can_judge_by_domain(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EXCISE_SHARED", str(tmp_path))  # named by recipes; none of its texts is read
    told = {file.stem for file in recipes_folder().glob("*.yaml") if notes_of(file.stem)}
    assert told == DEMOS


def test_it_is_said_by_every_command_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = read_recipe(recipe_file("demo"))
    several = read_recipe(recipe_file("demo"), ["criteria=[reap]"])
    assert COUNTED in forecast("prune", checked_for("prune", recipe, tmp_path / "run"))["notes"]
    assert COUNTED in forecast("compare", checked_for("compare", several, tmp_path / "run"))["notes"]
    monkeypatch.setattr(Run, "_check", stop)
    monkeypatch.setattr(Session, "check_texts", stop)
    for run in (Run(prepare(recipe, tmp_path / "run")), ComparisonRun(prepare(several, tmp_path / "run"))):
        caplog.clear()
        with caplog.at_level(logging.INFO, "excise"), pytest.raises(StopIteration):
            run.execute()
        assert COUNTED in caplog.messages


def stop(_: object) -> None:
    raise StopIteration
