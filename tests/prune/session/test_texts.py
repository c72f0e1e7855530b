"""Texts of a recipe: files of the standard library may quote each other, any other overlap is refused."""

import logging
from pathlib import Path

import numpy as np
import pytest

import criteria
import experts
from criteria.text import standard_library
from criteria.text.disjoint import repeated_windows
from criteria.text.windows import Windows
from experts.errors import ExciseError
from prune.recipe.read import read_recipe
from prune.session.texts import Texts

QUOTED = "".join(f"value_{number} = compute({number * 7919 % 1000})\n" for number in range(60))


@pytest.fixture
def model() -> experts.Model:
    return experts.load("demo")


@pytest.fixture
def _quoting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library of two splits, in which both have a file of the same lines."""

    def documents(_domain: str, split: str) -> list[tuple[str, str]]:
        rng = np.random.default_rng(len(split))
        own = [
            (f"{split}{file}.py", " ".join(f"{split}_{word}" for word in rng.integers(0, 10_000, 250)))
            for file in range(4)
        ]
        return [*own, (f"{split}_quotes.py", QUOTED)]

    monkeypatch.setattr(standard_library, "documents", documents)


def texts(tmp_path: Path, model: experts.Model, splits: tuple[str, str]) -> Texts:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: demo\ncriteria: [reap]\nprune: {fraction: 0.5}\n"
        f"calibration: {{data: {{stdlib: code, split: {splits[0]}}}, sequences: 40, length: 128}}\n"
        f"validate: {{data: {{stdlib: code, split: {splits[1]}}}, sequences: 40, length: 128}}\n"
        f"finetune: {{data: {{stdlib: code, split: {splits[0]}}}, sequences: 40, length: 128}}\n"
        f"refit: {{text: {{data: {{stdlib: code, split: {splits[0]}}}, sequences: 40, length: 128}}}}\n"
    )
    return Texts(model, read_recipe(recipe))


@pytest.mark.usefixtures("_quoting")
@pytest.mark.parametrize("name", ["calibration", "refit", "training"])
def test_windows_of_the_library_that_validation_repeats_are_left_out(
    tmp_path: Path, model: experts.Model, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    read = texts(tmp_path, model, ("calibration", "test"))
    with caplog.at_level(logging.INFO, logger="excise"):
        windows: Windows = getattr(read, name)
    assert 30 < len(windows) < 40
    assert len(read.validation) == 40
    assert not repeated_windows(windows.tokens, read.validation)
    assert f"{40 - len(windows)} of 40 windows left out" in caplog.text


@pytest.mark.usefixtures("_quoting")
def test_the_split_that_validation_reads_is_refused(tmp_path: Path, model: experts.Model) -> None:
    with pytest.raises(ExciseError, match="calibration and validation text overlap: 40 of 40"):
        _ = texts(tmp_path, model, ("test", "test")).calibration


@pytest.mark.usefixtures("_quoting")
def test_windows_apart_from_others(model: experts.Model) -> None:
    held_out = criteria.windows(model, stdlib="code", split="test", sequences=40, length=128)
    whole = criteria.windows(model, stdlib="code", split="calibration", sequences=40, length=128)
    apart = criteria.windows(
        model, stdlib="code", split="calibration", sequences=40, length=128, apart_from=held_out
    )
    assert repeated_windows(whole.tokens, held_out)
    assert not repeated_windows(apart.tokens, held_out)
    rows = {row.tobytes() for row in apart.tokens}
    assert [row.tobytes() in rows for row in whole.tokens].count(False) == len(whole) - len(apart) > 0
