"""The benchmark's own models at their smallest: their texts, their steps, and an interrupted run."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import experts
from benchmarks import own_models
from experts.arrays import Array

TINY = ["--batch", "2", "--length", "32", "--vocabulary", "300", "--save", "2"]
BATCHES = own_models.batches


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty articles and problems of each file."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("wikitext-2", "gsm8k"):
        (folder / name).mkdir()
    for name in ("valid", "test"):
        article = " \n = {} {} = \n \n Of {} things . \n \n = = Part = = \n More . \n"
        text = "".join(article.format(name, n, n) for n in range(20))
        (folder / "wikitext-2" / f"{name}.txt").write_text(text)
    for name in ("train-head", "test"):
        rows = [{"question": f"{name}: {n} + 1?", "answer": f"#### {n + 1}"} for n in range(20)]
        (folder / "gsm8k" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@pytest.mark.parametrize("domain", ["wiki", "maths"])
def test_splits_share_no_document(data: Path, domain: str) -> None:
    """All 20 documents of a file are there; of those that are not the test, every tenth calibrates."""
    train, calibration, test = (own_models.texts_of(domain, split, data) for split in own_models.SPLITS)
    assert (len(train), len(calibration), len(test)) == (18, 2, 20)
    assert len({*train, *calibration, *test}) == 40


def test_articles_are_whole(data: Path) -> None:
    """A heading of a part begins no article."""
    [first, *_] = own_models.texts_of("wiki", "test", data)
    assert first == "= test 0 = \n \n Of 0 things . \n \n = = Part = = \n More ."


def test_steps_depend_on_their_number_alone() -> None:
    """Steps 2 and 3 of a run that begins at 2 are those of a run from the start; domains take turns."""
    options = Namespace(steps=4, batch=3, length=4, seed=0)
    streams = [np.full(50, domain) for domain in range(3)]
    whole = dict(own_models.batches(streams, options, 0))
    late = dict(own_models.batches(streams, options, 2))
    assert all(torch.equal(whole[step], late[step]) for step in (2, 3))
    assert whole[0][:, 0].tolist() == [0, 1, 2]
    assert whole[1][:, 0].tolist() == [1, 2, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_experts"), [("A", 16), ("B", 24)])
def test_trained(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, num_experts: int
) -> None:
    """A run killed in its third step and run again ends in the weights of one that was not; both load."""
    monkeypatch.setattr(own_models, "documents", _documents)

    def trained(folder: str) -> dict[str, torch.Tensor]:
        argv = ["own_models", name, "--out", str(tmp_path / folder), "--data", str(data), "--steps", "4"]
        monkeypatch.setattr(sys, "argv", [*argv, *TINY])
        own_models.main()
        return load_file(tmp_path / folder / "model.safetensors")

    whole = trained("whole")
    monkeypatch.setattr(own_models, "batches", _killed_at_2)
    with pytest.raises(KeyboardInterrupt):
        trained("twice")
    monkeypatch.setattr(own_models, "batches", BATCHES)
    assert (tmp_path / "twice" / "training.pt").exists()
    again = trained("twice")
    assert all(torch.equal(weights, again[key]) for key, weights in whole.items())
    shape = experts.load(str(tmp_path / "whole")).shape
    assert (shape.num_layers, shape.num_experts, shape.top_k) == (6, num_experts, 4)


def _documents(_: str, split: str) -> Iterator[tuple[str, str]]:
    for n in range(20):
        yield f"{split}{n}", f"def {split}_{n}(x):\n    return x + {n}\n"


def _killed_at_2(streams: list[Array], options: Namespace, begin: int) -> Iterator[tuple[int, torch.Tensor]]:
    for step, tokens in BATCHES(streams, options, begin):
        if step == 2:
            raise KeyboardInterrupt
        yield step, tokens
