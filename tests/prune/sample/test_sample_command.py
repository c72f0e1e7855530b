"""`excise sample`, and runs that calibrate on text of the model itself: drawn, kept, told of, refused."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from criteria.text.sampled import own_text
from criteria.text.sampled.draw import continued
from experts.arrays import Ids
from experts.errors import ExciseError
from prune.console.cli import app
from prune.forecast.forecast import forecast
from prune.recipe.read import read_recipe
from prune.sample.result import SampleResult
from prune.session.checked import checked_for
from prune.session.prepare import prepare
from prune.session.session import Session
from prune.typed_json import problems
from tests.support.recipes import execute

DRAWN = "calibration.data={sampled: {temperature: 0.8}}"
SMALL = ("--windows", "5", "--length", "64", "--dtype", "float32")


def excise(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of windows that were drawn, in this process."""
    counts: list[int] = []

    def counting(*arguments: Any) -> Ids:
        counts.append(len(arguments[1]))
        return continued(*arguments)

    monkeypatch.setattr(own_text, "continued", counting)
    return counts


def test_a_file_is_written_and_calibrated_on(
    saved: dict[str, Path], recipe_path: Path, tmp_path: Path
) -> None:
    """A streamed model calibrates on the file of a resident one as that one does on what it draws."""
    file = tmp_path / "samples.jsonl"
    options = ("--windows", 8, "--length", 64, "--dtype", "float32", "--temperature", 0.8)
    done = excise("sample", saved["olmoe"], "-o", file, *options, "--json", "-q")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert not list(problems(printed, SampleResult))
    assert (printed["windows"], printed["length"], printed["temperature"]) == (8, 64, 0.8)
    assert list(tmp_path.glob("*.partial")) == []
    drawn = execute(recipe_path, tmp_path / "drawn", DRAWN)
    read = execute(
        recipe_path,
        tmp_path / "read",
        "calibration.data={sampled: {file: samples.jsonl}}",
        "memory.model=streamed",
    )
    texts = [result["text"]["calibration"] for result in (drawn, read)]
    assert texts[0]["hash"] == texts[1]["hash"]
    assert texts[1]["sampled"] == [{**texts[0]["sampled"][0], "file": "samples.jsonl"}]
    assert drawn["plans"][0]["digest"] == read["plans"][0]["digest"]


def test_what_a_run_says_of_its_text(recipe_path: Path, tmp_path: Path, calls: list[int]) -> None:
    result = execute(recipe_path, tmp_path / "run", DRAWN)
    text = result["text"]["calibration"]
    assert (text["windows"], text["documents"], text["domains"]) == (8, 8, ["sampled"])
    assert "sampled" not in result["text"]["validation"]
    said = "8 of the windows were sampled from the model itself (start random, temperature 0.8, seed 0"
    assert said in (tmp_path / "run" / "report.md").read_text()
    assert said in (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    execute(recipe_path, tmp_path / "again", DRAWN, "prune.fraction=0.25")
    assert len(calls) == 1, "drawn once for all runs"


def test_nothing_is_drawn_before_the_refusals(recipe_path: Path, tmp_path: Path, calls: list[int]) -> None:
    with pytest.raises(ExciseError, match="sampled: start: chat, but the tokenizer has no chat template"):
        execute(recipe_path, tmp_path / "run", "calibration.data={sampled: {start: chat}}")
    with pytest.raises(ExciseError, match="`excise sample` on a machine where it fits"):
        execute(recipe_path, tmp_path / "run", DRAWN, "memory.model=streamed")
    with pytest.raises(ExciseError, match=r"calibration\.data names .*absent\.jsonl: No such file"):
        execute(recipe_path, tmp_path / "run", "calibration.data={sampled: {file: absent.jsonl}}")
    with pytest.raises(ExciseError, match="fewer|less|shorter|asked"):
        execute(recipe_path, tmp_path / "run", DRAWN, "validate.sequences=100000")
    assert not calls
    assert not (tmp_path / "run").exists()


def test_windows_longer_than_the_positions(
    recipe_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Said as of other text, and before the work: the model would write where it was not made to read."""
    recipe = read_recipe(recipe_path, [DRAWN, "calibration.length=130"])
    session = Session(prepare(recipe, tmp_path / "run"))
    with caplog.at_level(logging.INFO, "excise"):
        session.check_texts()
    assert "a window of 130 tokens is longer than the 128 positions the model was made for" in caplog.messages
    assert "calibration" not in vars(session.texts), "nothing was drawn"


def test_the_forecast(recipe_path: Path, tmp_path: Path) -> None:
    checked = checked_for("prune", read_recipe(recipe_path, [DRAWN]), tmp_path / "run")
    said = forecast("prune", checked)
    assert said["texts"][0]["sources"] == ["written by the model itself: start random, temperature 0.8"]
    assert said["stages"][0]["stage"] == "sampled text"
    assert said["stages"][0]["windows"] == 32 * 6, "a group is 32 windows, at 6 plain forwards each"
    streamed = read_recipe(recipe_path, [DRAWN, "memory.model=streamed"])
    checked = checked_for("prune", streamed, tmp_path / "run")
    with pytest.raises(ExciseError, match="`excise sample` on a machine where it fits"):
        forecast("prune", checked)


def test_another_seed_draws_other_windows(recipe_path: Path, tmp_path: Path) -> None:
    """So that stability over calibration seeds means something."""
    texts = Session(prepare(read_recipe(recipe_path, [DRAWN]), tmp_path / "run")).texts
    assert texts.calibration.hash != texts.reseeded(1).calibration.hash


def test_a_killed_command_goes_on(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, file = tmp_path / "whole.jsonl", tmp_path / "samples.jsonl"
    options = ("--windows", 40, "--length", 24, "--dtype", "float32", "-q")
    assert excise("sample", saved["olmoe"], "-o", whole, *options).exit_code == 0
    counts: list[int] = []

    def second_fails(*arguments: Any) -> Ids:
        counts.append(len(arguments[1]))
        if len(counts) == 2:
            raise KeyboardInterrupt
        return continued(*arguments)

    monkeypatch.setattr(own_text, "continued", second_fails)
    assert excise("sample", saved["olmoe"], "-o", file, *options).exit_code == 1
    assert not file.exists()
    assert (tmp_path / "samples.jsonl.partial").exists()
    assert excise("sample", saved["olmoe"], "-o", file, *options).exit_code == 0
    assert counts == [32, 32, 32]
    assert file.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("samples.txt", (), r"ends in \.jsonl"),
        ("there.jsonl", (), "exists; choose another --output, or --force"),
        ("new.jsonl", ("--start", "chat"), "the tokenizer has no chat template"),
        ("new.jsonl", ("--temperature", "-1"), "--temperature: Input should be greater than 0"),
    ],
)
def test_refusals(
    output: str, options: tuple[str, ...], message: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "there.jsonl").write_text("mine")
    done = excise("sample", saved["olmoe"], "-o", tmp_path / output, *SMALL, *options, "-q")
    assert done.exit_code == 1
    assert re.search(message, " ".join(done.stderr.split()))
    assert (tmp_path / "there.jsonl").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} <= {"there.jsonl", "cache"}
