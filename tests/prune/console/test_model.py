"""`excise prune MODEL`: a recipe is made, shown and kept; options that do not belong together are refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from prune.console.cli import app
from prune.recipe.read import read_recipe
from prune.starter.request import is_recipe, short_name

SMALL = [
    "--set",
    "calibration.sequences=8",
    "--set",
    "validate.sequences=8",
    "--set",
    "dtype=float32",
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def excise(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def story(path: Path) -> Path:
    """Text of 120 paragraphs of different words."""
    paragraphs = []
    for number in range(120):
        words = [f"{(number * 7919 + word * 104729) % 9973:04d}" for word in range(80)]
        paragraphs.append(" ".join(words))
    path.write_text("\n\n".join(paragraphs))
    return path


def test_a_model_without_a_recipe(saved: dict[str, Path], tmp_path: Path) -> None:
    text = story(tmp_path / "story.txt")
    result = excise("prune", saved["olmoe"], "--text", text, *SMALL)
    assert result.exit_code == 0, result.output
    run = Path("runs/olmoe-reap-0.5-layer")
    assert (run / "checkpoint" / "config.json").is_file()
    assert "every third passage is held out" in result.stderr
    for line in ("next:", "from_pretrained", "transformers serve runs/olmoe-reap-0.5-layer/checkpoint"):
        assert line in result.stdout
    shown = yaml.safe_load(result.stderr[result.stderr.index("model:") :].partition("\n\n")[0])
    kept = yaml.safe_load((run / "recipe.yaml").read_text())
    assert shown == {**kept, "criteria": ["reap"]}
    assert kept["calibration"]["length"] == 128, "the model was made for no more"


@pytest.mark.slow
def test_the_recipe_that_was_kept_runs_again(saved: dict[str, Path], tmp_path: Path) -> None:
    text = story(tmp_path / "story.txt")
    excise("prune", saved["olmoe"], "--keep", 6, "--text", text, "-o", "first", *SMALL)
    again = excise("prune", "first/recipe.yaml", "-o", "second", "--quiet")
    assert again.exit_code == 0, again.output
    assert Path("first/plan.json").read_text() == Path("second/plan.json").read_text()


def test_text_parts_are_disjoint_and_no_run_begins_without_them(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    result = excise("prune", saved["olmoe"], "--text", short)
    assert result.exit_code == 1
    assert "take a longer text" in result.stderr


def test_defaults_need_no_download(saved: dict[str, Path]) -> None:
    result = excise("prune", saved["olmoe"], "--dry-run")
    assert result.exit_code == 0, result.output
    assert "written by the model itself: start random, temperature 1" in result.stdout
    assert "stdlib code (test)" in result.stdout
    assert "runs/olmoe-reap-0.5-layer" in result.stdout
    assert not Path("runs").exists()


def test_a_model_that_cannot_write_or_a_criterion_that_compares_domains(saved: dict[str, Path]) -> None:
    for options, told in (
        (["--set", "memory.model=streamed"], True),
        (["--criterion", "specialization"], False),
    ):
        result = excise("prune", saved["olmoe"], "--dry-run", *options)
        assert result.exit_code == 0, result.output
        assert "stdlib code (calibration)" in result.stdout
        assert ("it cannot write its own calibration text" in result.stderr) is told


@pytest.mark.slow
def test_a_model_by_its_own_text(saved: dict[str, Path]) -> None:
    """The whole run, with the recipe that was made; its samples are drawn once."""
    small = [*SMALL, "--set", "calibration.length=32", "--set", "validate.length=32"]
    result = excise("prune", saved["olmoe"], "-o", "run", *small)
    assert result.exit_code == 0, result.output
    kept = yaml.safe_load(Path("run/recipe.yaml").read_text())
    assert kept["calibration"]["data"] == [{"sampled": {}}]
    assert "8 of the windows were sampled from the model itself" in Path("run/report.md").read_text()


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        (["--fraction", "0.25", "--criterion", "utilization"], "olmoe-utilization-0.25-layer"),
        (["--keep", "5"], "olmoe-reap-5-layer"),
        (["--target-size", "250kB"], "olmoe-reap-250kB-layer"),
    ],
)
def test_budgets_name_the_run_folder(saved: dict[str, Path], options: list[str], budget: str) -> None:
    result = excise("prune", saved["olmoe"], "--dry-run", *options)
    assert f"runs/{budget}" in result.stdout, result.output


def test_options_of_a_model_with_a_recipe_are_usage_errors(recipe_path: Path) -> None:
    for recipe in ("demo", recipe_path):
        result = excise("prune", recipe, "--keep", 8)
        assert result.exit_code == 2
        assert "for a model without a recipe" in " ".join(result.stderr.split())


def test_one_budget_is_enough(saved: dict[str, Path]) -> None:
    result = excise("prune", saved["olmoe"], "--keep", 5, "--fraction", 0.5)
    assert result.exit_code == 2
    assert "give one of --fraction, --keep" in result.stderr


def test_what_is_neither() -> None:
    result = excise("prune", "nowhere")
    assert result.exit_code == 1
    assert "no such recipe file" in result.stderr
    assert "organisation/name on the hub" in result.stderr


def test_a_shipped_recipe_wins(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    assert is_recipe("demo")


def test_names_of_run_folders(tmp_path: Path) -> None:
    assert short_name("allenai/OLMoE-1B-7B-0924@main") == "OLMoE-1B-7B-0924"
    commit = "0" * 40
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    assert short_name(str(snapshot)) == "tiny"


def test_rows_are_no_plain_text(saved: dict[str, Path], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    result = excise("prune", saved["olmoe"], "--text", rows)
    assert result.exit_code == 1
    assert "excise init" in result.stderr


def test_the_recipe_on_paper_is_valid(saved: dict[str, Path]) -> None:
    result = excise("init", saved["olmoe"])
    assert result.exit_code == 0, result.output
    assert read_recipe(Path("recipe.yaml")).prune.fraction == 0.5
