"""A file of samples: exactly the tokens that were drawn, for the model that drew them or one of its kind."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import criteria
import experts
from criteria.text.sampled.sample_file import write_samples
from experts.errors import ExciseError
from tests.support import tiny

LENGTH = 12


@pytest.fixture(scope="module")
def model(saved: dict[str, Path]) -> experts.Model:
    return experts.load(str(saved["olmoe"]), dtype="float32")


@pytest.fixture(scope="module")
def drawn(model: experts.Model) -> criteria.Windows:
    return criteria.sampled(model, windows=6, length=LENGTH, seed=4)


@pytest.fixture
def file(model: experts.Model, drawn: criteria.Windows, tmp_path: Path) -> Path:
    path = tmp_path / "samples.jsonl"
    write_samples(path, drawn.tokens, model, drawn.sampled[0])
    return path


def read(model: experts.Model, file: Path, **keys: Any) -> criteria.Windows:
    settings = {"sequences": 6, "length": LENGTH, **keys}
    return criteria.windows(model, sampled={"file": file}, **settings)


def test_the_file_gives_the_windows_that_were_drawn(
    model: experts.Model, drawn: criteria.Windows, file: Path
) -> None:
    found = read(model, file)
    assert np.array_equal(found.tokens, drawn.tokens)
    assert found.hash == drawn.hash
    assert found.domains == ("sampled",)
    assert found.sampled == ({**drawn.sampled[0], "file": "samples.jsonl"},)
    assert np.array_equal(read(model, file, sequences=2, length=8).tokens, drawn.tokens[:2, :8])


def test_another_seed_takes_the_next_windows(
    model: experts.Model, drawn: criteria.Windows, file: Path
) -> None:
    assert np.array_equal(read(model, file, sequences=2, seed=1).tokens, drawn.tokens[2:4])
    assert np.array_equal(read(model, file, sequences=4, seed=1).tokens, drawn.tokens[[4, 5, 0, 1]])


def test_other_programs_can_read_the_text(model: experts.Model, file: Path) -> None:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [row["sampled"]["window"] for row in rows] == list(range(6))
    assert rows[0]["text"] == model.tokenizer.decode(rows[0]["tokens"])
    as_rows = criteria.windows(model, jsonl=file, sequences=2, length=LENGTH)
    assert as_rows.domains == ("jsonl",)


def test_a_model_of_another_vocabulary_is_refused(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny.save(tiny.build("olmoe", seed=1), tmp_path / "sister")
    sister = experts.load(str(folder), dtype="float32")
    with caplog.at_level(logging.INFO, "excise"):
        assert len(read(sister, file)) == 6
    assert "another model of the same vocabulary wrote it" in caplog.text
    settings = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = settings["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(ExciseError, match="a model of another vocabulary wrote it"):
        read(experts.load(str(folder), dtype="float32"), file)


def change(file: Path, edit: Callable[[list[dict[str, Any]]], None]) -> None:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    edit(rows)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: rows.clear(), "is empty"),
        (lambda rows: rows[1].pop("tokens"), r"samples.jsonl:2: no row of `excise sample`"),
        (lambda rows: rows[1]["tokens"].append("x"), r"samples.jsonl:2: no row"),
        (lambda rows: rows[2]["sampled"].pop("seed"), r"samples.jsonl:3: no row"),
        (lambda rows: rows[2]["sampled"].update(seed=9), "row 1 was drawn with seed 4, row 3 with 9"),
        (lambda rows: rows[5]["tokens"].pop(), "has windows of 11 tokens, 12 asked"),
        (
            lambda rows: rows[3]["tokens"].__setitem__(11, 10**20),
            r"samples.jsonl: row 4 has token 10{20}, and the model's vocabulary has 259 \(config.json, vocab",
        ),
        (lambda rows: rows[0]["tokens"].__setitem__(0, 259), "row 1 has token 259, and the model's vocab"),
        (lambda rows: rows.pop(), "has 5 windows, 6 asked"),
    ],
)
def test_files_that_cannot_be_used(
    edit: Callable[[list[dict[str, Any]]], None], message: str, model: experts.Model, file: Path
) -> None:
    change(file, edit)
    with pytest.raises(ExciseError, match=message) as found:
        read(model, file)
    assert "\n" not in str(found.value)


def test_no_file_and_no_text(model: experts.Model, tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="No such file"):
        read(model, tmp_path / "absent.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ExciseError, match="not UTF-8"):
        read(model, tmp_path / "binary.jsonl")


def test_a_streamed_model_reads_a_file(saved: dict[str, Path], file: Path, drawn: criteria.Windows) -> None:
    streamed = experts.load(str(saved["olmoe"]), dtype="float32", memory="streamed")
    assert np.array_equal(read(streamed, file).tokens, drawn.tokens)


def test_mixed_with_real_text_by_weight(model: experts.Model, drawn: criteria.Windows) -> None:
    """3 : 1 of 8 windows; every sampled window is a document."""
    both = [
        criteria.Source.model_validate({"sampled": {"seed": 4}, "weight": 3}),
        criteria.Source(stdlib="code", split="train"),
    ]
    text = criteria.windows(model, both, sequences=8, length=LENGTH)
    assert text.domains == ("sampled", "code")
    assert text.domain.tolist() == [0] * 6 + [1] * 2
    assert np.array_equal(text.tokens[:6], drawn.tokens)
    assert text.summary()["sampled"][0]["windows"] == 6
