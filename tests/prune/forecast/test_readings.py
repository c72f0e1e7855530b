"""What `--dry-run` says a streamed command reads is what it reads, layer by layer."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from experts.streaming.layers import Streamed
from tests.prune.test_streamed import SETTINGS, write
from tests.support.recipes import invoke


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The decoder layers that were read."""
    load, layers = Streamed._load, list[int]()

    def counted(weights: Streamed, layer: int) -> None:
        load(weights, layer)
        layers.append(layer)

    monkeypatch.setattr(Streamed, "_load", counted)
    return layers


@pytest.mark.slow
@pytest.mark.parametrize("command", SETTINGS)
def test_readings(command: str, recipe_path: Path, tmp_path: Path, read: list[int]) -> None:
    write(recipe_path, tmp_path, without_swaps(SETTINGS[command]))
    arguments = (command, recipe_path, "-o", tmp_path / "run", "--set", "memory.model=streamed")
    forecast = json.loads(invoke(*arguments, "--dry-run", "--json").stdout)
    readings = forecast["memory"]["readings"]
    assert invoke(*arguments).exit_code == 0
    num_layers = max(read) + 1
    expected = len(readings) * num_layers
    if command == "prune":
        expected += num_layers  # the written checkpoint
    # The top layer stays in memory between the way up and the way down.
    gradients = sum(name.startswith(("gradient", "fisher")) for name in readings) // 2
    assert len(read) == expected - gradients


def without_swaps(settings: dict[str, Any]) -> dict[str, Any]:
    """How many readings they take depends on what they find; see `test_swaps_read_no_more_than_said`."""
    names = [name for name in settings["criteria"] if not name.startswith("causal_swaps")]
    return settings | {"criteria": names}


@pytest.mark.slow
def test_swaps_read_no_more_than_said(recipe_path: Path, tmp_path: Path, read: list[int]) -> None:
    """Two readings a pass; one where no swap helps, or a single one."""
    recipe = yaml.safe_load(recipe_path.read_text())
    recipe["criteria"] = ["causal_swaps:shortlist=3,passes=3", "random"]
    recipe_path.write_text(yaml.safe_dump(recipe))
    arguments = ("prune", recipe_path, "-o", tmp_path / "run", "--set", "memory.model=streamed")
    readings = json.loads(invoke(*arguments, "--dry-run", "--json").stdout)["memory"]["readings"]
    assert invoke(*arguments).exit_code == 0
    assert sum(name.startswith("causal_swaps") for name in readings) == 3 + 2 * 3
    most, num_layers = (len(readings) + 1), max(read) + 1
    assert (most - 3) * num_layers <= len(read) <= most * num_layers


@pytest.mark.slow
def test_plans_that_do_not_fit_together(recipe_path: Path, tmp_path: Path, read: list[int]) -> None:
    """Their states wait for another reading."""
    recipe = yaml.safe_load(recipe_path.read_text())
    recipe["validate"] |= {"random_plans": 20}
    recipe_path.write_text(yaml.safe_dump(recipe))
    limit = '{"model": "streamed", "limit": "900kB"}'
    arguments = ("prune", recipe_path, "-o", tmp_path / "run", "--set", f"memory={limit}")
    readings = json.loads(invoke(*arguments, "--dry-run", "--json").stdout)["memory"]["readings"]
    assert readings.count("plans") > 2
    assert invoke(*arguments).exit_code == 0
    assert len(read) == (len(readings) + 1) * (max(read) + 1)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_sets_of_experts(scope: str, recipe_path: Path, tmp_path: Path, read: list[int]) -> None:
    """Sums over pairs come from the calibration; recon visits the layers for outputs, greedy and swaps."""
    recipe = yaml.safe_load(recipe_path.read_text())
    recipe["criteria"] = ["hope", "fisher_pairs:windows=2", "recon:tokens=32", "random"]
    recipe["prune"] |= {"scope": scope}
    recipe_path.write_text(yaml.safe_dump(recipe))
    arguments = ("prune", recipe_path, "-o", tmp_path / "run", "--set", "memory.model=streamed")
    forecast = invoke(*arguments, "--dry-run", "--json")
    assert forecast.exit_code == 0, forecast.output
    readings = json.loads(forecast.stdout)["memory"]["readings"]
    result = invoke(*arguments)
    assert result.exit_code in (0, 3), result.output
    num_layers = max(read) + 1
    stays = 1 if scope == "layer" else 2  # the top layer, between the way up and the way down
    assert len(read) == (len(readings) + 1) * num_layers - stays
