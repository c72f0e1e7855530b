"""What a checkpoint will take in memory, before anything of it is loaded."""

import torch

from experts.disk.shards import Checkpoint
from experts.loading import skeleton
from experts.pretrained import refusing
from experts.streaming.decoder import decoder_of
from experts.streaming.files import TYPES
from experts.streaming.sizes import Sizes, sizes_of


def forecast_sizes(checkpoint: Checkpoint, dtype: str = "auto", trust_remote_code: bool = False) -> Sizes:
    """Sizes of a checkpoint's parts in memory, dequantised, from its configuration.

    Single small weights that a type keeps in float32, as routers' biases, count like the others.

    Args:
        checkpoint: headers of the folder
        dtype: precision in memory: auto (as stored), float32, bfloat16, float16
        trust_remote_code: run code that comes with the checkpoint

    Raises:
        ExciseError: the configuration describes no network with MoE layers.
    """
    with refusing(checkpoint.folder, "the model"):
        network = skeleton(checkpoint.folder, trust_remote_code, _dtype(checkpoint, dtype))
        return sizes_of(network, decoder_of(network).layers)


def _dtype(checkpoint: Checkpoint, dtype: str) -> torch.dtype | None:
    """The precision of most weights; None = the one that the configuration names."""
    if dtype != "auto":
        found: torch.dtype = getattr(torch, dtype)
        return found
    if checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype"):
        return None
    types = (TYPES.get(stored.dtype) for stored in checkpoint.tensors.values())
    return next((kind for kind in types if kind is not None and kind.is_floating_point), None)
