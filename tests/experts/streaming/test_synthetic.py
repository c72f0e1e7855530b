"""The benchmarks' checkpoints: as large as they say, loadable, gone afterwards."""

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.shapes import OLMOE, QWEN3_30B, DeepSeekV3, Softmax
from benchmarks.shards import size, write_sparse
from benchmarks.synthetic import synthetic
from experts.loading import load_network, load_tokenizer
from tests.support.streaming import differences, opened

TINY = dataclasses.replace(
    OLMOE,
    layers=2,
    experts=8,
    top_k=2,
    hidden=32,
    inner=24,
    heads=4,
    key_heads=4,
    head=8,
    norms=(32, 32),
    vocabulary=300,
)


@pytest.mark.parametrize(
    ("shape", "tensors", "gigabytes"),
    [(OLMOE, 3219, 13.8), (QWEN3_30B, 18_867, 61.1), (DeepSeekV3(), 90_427, 673.2)],
)
def test_real_sizes(shape: Softmax | DeepSeekV3, tensors: int, gigabytes: float) -> None:
    specs = list(shape.specs())
    assert len(specs) == len({spec[0] for spec in specs}) == tensors
    assert sum(map(size, specs)) / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_random_weights(tmp_path: Path) -> None:
    """In several shards, of a scale at which the model computes something, the same every time."""
    with synthetic(tmp_path / "model", TINY, shard=20_000) as folder:
        assert len(list(folder.glob("*.safetensors"))) > 5
        assert not differences(folder)
        network = load_network(folder)
        ids = torch.tensor(load_tokenizer(folder)("Some text.")["input_ids"])[None]
        logits = network(ids).logits.float()
        assert network.dtype == torch.bfloat16
        assert 0.3 < logits.std() < 3
    assert not folder.exists()
    with synthetic(tmp_path / "model", TINY) as folder:
        assert torch.equal(load_network(folder)(ids).logits.float(), logits)


def test_removed_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), synthetic(tmp_path / "model", TINY) as folder:
        raise KeyError
    assert not folder.exists()


def test_holes_are_zeros(tmp_path: Path) -> None:
    write_sparse(tmp_path / "model", TINY.specs(), TINY.config, shard=50_000)
    network, weights = opened(tmp_path / "model")
    with weights.loaded(range(2)):
        assert not any(parameter.any() for parameter in network.parameters())
