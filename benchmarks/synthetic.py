"""A synthetic checkpoint in the real shape of OLMoE-1B-7B: 13.8 GB of random weights, removed afterwards.

    python -m benchmarks.synthetic FOLDER [--layers 16]

writes one that stays. Matrices are drawn so that what they multiply keeps its scale, norms are 1; a tokenizer
of bytes is beside them. No more than one tensor is in memory.
"""

import argparse
import dataclasses
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.shapes import OLMOE, Softmax
from benchmarks.shards import Spec, write_checkpoint

SHARD = 2_000_000_000  # bytes
END, PADDING = "<eos>", "<pad>"


@contextmanager
def synthetic(folder: Path, shape: Softmax = OLMOE, shard: int = SHARD) -> Iterator[Path]:
    """Inside the block the folder holds a checkpoint; afterwards it is gone, whatever happens."""
    try:
        write(folder, shape, shard)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(folder: Path, shape: Softmax = OLMOE, shard: int = SHARD) -> None:
    """A checkpoint with random weights, the same every time."""
    generator = torch.Generator().manual_seed(0)
    write_checkpoint(folder, shape.specs(), shape.config, shard, lambda spec: _weights(spec, generator))
    _tokenizer().save_pretrained(folder)


def _weights(spec: Spec, generator: torch.Generator) -> bytes:
    """Normal with a standard deviation of 1 / √columns; ones for norms."""
    _, _, shape = spec
    weights = torch.ones(shape)
    if len(shape) == 2:
        weights.normal_(0.0, 1 / math.sqrt(shape[1]), generator=generator)
    numbers: np.ndarray = weights.bfloat16().view(torch.int16).numpy()
    return numbers.tobytes()


def _tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, an end and a padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {symbol: number for number, symbol in enumerate(alphabet)}
    inner = Tokenizer(models.BPE(tokens, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, pad_token=PADDING)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=OLMOE.layers)
    options = parser.parse_args()
    write(options.folder, dataclasses.replace(OLMOE, layers=options.layers))


if __name__ == "__main__":
    main()
