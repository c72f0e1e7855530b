"""--dry-run says what will happen, from headers alone, and does none of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from criteria.budget import from_keep
from criteria.by_name import resolve
from experts.shape import Shape
from prune.forecast.criterion_cost import DEMO, calibration_passes
from prune.forecast.forecast import forecast
from prune.forecast.result import StageJson
from prune.forecast.seconds import seconds_of
from prune.forecast.words import words
from prune.recipe.read import read_recipe
from prune.session.checked import checked_for
from prune.session.prepare import prepare
from prune.session.speed import Speed, keep_speed, known_speeds, this_machine
from tests.support.recipes import execute

COMMANDS = ("prune", "compare", "audit", "finetune")
NO_TORCH = """
import sys
from prune.console.cli import app
try: app(sys.argv[1:])
except SystemExit as end: assert end.code == 0, end.code
assert 'torch' not in sys.modules
"""


@pytest.mark.parametrize(
    "command", ["prune", *(pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS[1:])]
)
def test_nothing_is_loaded_and_nothing_written(command: str, recovery_recipe: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, command, str(recovery_recipe), "--dry-run", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["command"] == command
    assert said["seconds"] is None
    assert "no run of this model" in said["seconds_from"]
    assert said["model"]["download"] == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_writes_and_measures_what_was_forecast(recipe_path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = forecast("prune", checked_for("prune", read_recipe(recipe_path), run))
    result = execute(recipe_path, run)
    for name in said["writes"]:
        assert (run / name).exists(), name
    assert said["disk"]["checkpoint"] == result["plans"][0]["size"]
    losses = (run / "losses.csv").read_text().splitlines()
    plans = {line.split(",")[0] for line in losses[1:] if not line.startswith("#")}
    test = next(stage for stage in said["stages"] if stage["stage"] == "test")
    assert test["windows"] is not None
    assert len(plans) * 8 <= test["windows"]
    assert "25 plans (unpruned, 2 tested, 2 reversed, 20 random) × 8 windows" in test["detail"]


def test_time_is_windows_by_the_speed_of_an_earlier_run(recipe_path: Path, tmp_path: Path) -> None:
    execute(recipe_path, tmp_path / "run")
    checked = checked_for("prune", read_recipe(recipe_path), tmp_path / "other")
    (speed,) = known_speeds(checked.layout.checkpoint, tmp_path / "other")
    losses = (tmp_path / "run" / "losses.csv").read_text().splitlines()[1:]
    assert speed["windows"] == sum(not line.startswith("#") for line in losses)
    said = forecast("prune", checked)
    windows = sum(stage["windows"] or 0 for stage in said["stages"])
    assert said["seconds"] == pytest.approx(windows * speed["seconds"] / speed["windows"])
    assert speed["device"] in said["seconds_from"]
    assert "about" in dict(words(said))["time"]


def test_an_audit_says_what_its_time_leaves_out(recipe_path: Path, tmp_path: Path) -> None:
    checked = checked_for("audit", read_recipe(recipe_path), tmp_path / "run")
    keep_speed(checked.layout.checkpoint, checked.folder.path, SPEED)
    assert forecast("audit", checked)["seconds_from"].endswith("; not counted: audit")


SPEED: Speed = {
    "windows": 100,
    "seconds": 50.0,
    "machine": this_machine(),
    "device": "CPU, threads: 2",
    "dtype": "float32",
    "batch": 8,
    "length": 64,
}


@pytest.mark.parametrize(
    ("others", "seconds"),
    [
        ([], 1.0),
        ([SPEED | {"dtype": "bfloat16", "seconds": 1.0}], 1.0),
        ([SPEED | {"machine": "elsewhere", "seconds": 1.0}], 1.0),
        ([SPEED | {"length": 640, "seconds": 1.0}], 1.0),
        ([SPEED | {"device": "a newer one", "seconds": 5.0}], 0.1),
    ],
    ids=["alone", "other dtype", "other machine", "other length", "newer"],
)
def test_the_nearest_record_is_taken(others: list[Speed], seconds: float, recipe_path: Path) -> None:
    stages: list[StageJson] = [
        {"stage": "calibration", "windows": 2, "length": 64, "detail": ""},
        {"stage": "audit", "windows": None, "length": 64, "detail": ""},
    ]
    found, _ = seconds_of(stages, [SPEED, *others], read_recipe(recipe_path))
    assert found == pytest.approx(seconds)


def test_longer_windows_count_by_their_tokens(recipe_path: Path) -> None:
    stages: list[StageJson] = [{"stage": "test", "windows": 3, "length": 128, "detail": ""}]
    assert seconds_of(stages, [SPEED], read_recipe(recipe_path))[0] == pytest.approx(3.0)


@pytest.mark.parametrize("content", ["", "[]", '{"speeds": [{"windows": 1}]}', '{"speeds": 3}'])
def test_a_damaged_record_is_none(content: str, recipe_path: Path, tmp_path: Path) -> None:
    checked = checked_for("prune", read_recipe(recipe_path), tmp_path / "run")
    keep_speed(checked.layout.checkpoint, checked.folder.path, SPEED)
    (file,) = (tmp_path / "cache").glob("speed-*.json")
    file.write_text(content)
    assert forecast("prune", checked)["seconds"] is None


def test_without_a_cache_the_run_folder_holds_the_record(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXCISE_CACHE", "/dev/null/cache")
    checked = checked_for("prune", read_recipe(recipe_path), tmp_path / "run")
    keep_speed(checked.layout.checkpoint, checked.folder.path, SPEED)
    assert forecast("prune", checked)["seconds"] is not None


def test_refusals_come_as_in_the_run(recipe_path: Path, tmp_path: Path) -> None:
    from experts.errors import ExciseError

    recipe = read_recipe(recipe_path, ["prune.keep=1", "prune.fraction=null"])
    with pytest.raises(ExciseError) as refused:
        checked_for("prune", recipe, tmp_path / "run")
    with pytest.raises(ExciseError, match="top_k") as also:
        prepare(recipe, tmp_path / "run")
    assert str(refused.value) == str(also.value)


def test_costs_of_the_demo_are_those_of_the_registry() -> None:
    searches = ("causal_greedy", "causal_swaps")
    names = ("reap", "random", "causal_removal", "causal_position", "fisher", "integrated", *searches)
    budget = from_keep(DEMO, 8, "layer")
    rows = {cost.name: cost.forwards for cost in calibration_passes(map(resolve, names), DEMO, budget, 64)}
    assert rows.pop("observed statistics") == 1.1
    assert rows == {name: resolve(name).cost for name in rows}
    assert set(rows) == set(names) - {"reap", "random"}


def test_costs_grow() -> None:
    twice = Shape(tuple(range(12)), 16, 4)
    budget = from_keep(twice, 8, "layer")
    swaps = "causal_swaps:passes=2,shortlist=4,windows=32"
    names = ("causal_removal", "fisher:probes=8", "gradient:windows=16", "gradient_abs", swaps)
    criteria = map(resolve, names)
    rows = {cost.name: cost.forwards for cost in calibration_passes(criteria, twice, budget, 64)}
    assert rows["causal_removal"] == 100
    assert rows["fisher:probes=8"] == pytest.approx(10.4)
    assert rows["gradient:windows=16"] == pytest.approx(3.4 / 4)
    assert rows["gradient_abs"] == 3.4
    assert rows[swaps] == pytest.approx(resolve("causal_swaps").cost * 2 / 2 / 4 / 2)


def test_experiments_that_are_shared_cost_once() -> None:
    criteria = [resolve("gradient"), resolve("gradient_abs"), resolve("reversed:gradient")]
    rows = calibration_passes(criteria, DEMO, from_keep(DEMO, 8, "layer"), 64)
    assert [row.name for row in rows] == ["observed statistics", "gradient"]


def test_downloads_are_counted(hub: object, recipe_path: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_path, ["model=org/tiny"])
    said = forecast("prune", checked_for("prune", recipe, tmp_path / "run"))
    assert said["model"]["name"].startswith("org/tiny@")
    assert said["model"]["download"] >= said["model"]["size"]
