"""Weights that come from disk layer by layer, compared with those of a whole load."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from experts.disk.shards import open_checkpoint
from experts.loading import load_network
from experts.streaming.layers import Streamed
from experts.streaming.open import open_streamed


def opened(folder: Path, **options: Any) -> tuple[PreTrainedModel, Streamed]:
    return open_streamed(open_checkpoint(folder), **options)


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones under each of their names."""
    return dict(
        (
            *network.named_parameters(remove_duplicate=False),
            *network.named_buffers(remove_duplicate=False),
        )
    )


def on_meta(network: nn.Module) -> set[str]:
    return {name for name, tensor in tensors_of(network).items() if tensor.is_meta}


def differences(folder: Path, **options: Any) -> list[str]:
    """Weights that are not, bit by bit, those of a whole load, or that no span has.

    Args:
        folder: the checkpoint
        options: dtype for both; ahead for the streamed one
    """
    ahead = options.pop("ahead", None)
    whole = tensors_of(load_network(folder, **options))
    network, weights = opened(folder, **options, ahead=ahead)
    resident = set(whole) - on_meta(network)
    wrong = _wrong(network, whole)
    seen = set(resident)
    for span in weights.spans():
        with weights.loaded(span):
            seen |= set(whole) - on_meta(network)
            wrong += _wrong(network, whole)
        if set(whole) - on_meta(network) != resident and not ahead:
            wrong.append(f"span {span} stayed in memory")
    return wrong + sorted(set(whole) ^ seen)


def _wrong(network: nn.Module, whole: dict[str, Tensor]) -> list[str]:
    """Tensors in memory that are not the same."""
    here = {name: tensor for name, tensor in tensors_of(network).items() if not tensor.is_meta}
    return [name for name, tensor in here.items() if not _same(tensor, whole[name])]


def _same(tensor: Tensor, other: Tensor) -> bool:
    return tensor.dtype == other.dtype and torch.equal(tensor, other)
