"""Open a checkpoint without its decoder layers."""

import torch
from transformers import PreTrainedModel

from experts.disk.shards import Checkpoint
from experts.memory import device_for
from experts.plain_outputs import set_plain_outputs
from experts.pretrained import align, check_files, from_pretrained, refusing
from experts.streaming.allocation import give_back_freed
from experts.streaming.decoder import check_ties, decoder_of
from experts.streaming.files import on_meta
from experts.streaming.layers import Streamed
from experts.streaming.library import Conversion, without_data
from experts.streaming.parts import partition
from experts.streaming.sizes import sizes_of


def open_streamed(
    checkpoint: Checkpoint,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    device: torch.device | None = None,
    ahead: bool | None = None,
) -> tuple[PreTrainedModel, Streamed]:
    """Load everything outside the decoder layers, in evaluation mode; layers come when they are asked for.

    Names, shapes and conversions of the whole checkpoint are checked before any data is read. No weight takes
    a gradient.

    Args:
        checkpoint: headers of the folder; files that change afterwards are refused
        dtype: precision in memory: auto (as stored), float32, bfloat16, float16
        trust_remote_code: run code that comes with the checkpoint
        device: where weights go; by default the GPU if a fifth of its free memory is left, else the CPU
        ahead: read the next layer while one is in use; by default on GPUs

    Returns:
        The network, and the weights of its layers.

    Raises:
        ExciseError: the checkpoint cannot be loaded, or not layer by layer.
    """
    folder = checkpoint.folder
    check_files(folder)
    give_back_freed()
    with refusing(folder, "the model"):
        with without_data(on_meta(checkpoint.tensors)) as made:
            from_pretrained(folder, dtype, trust_remote_code)
        weights = _deferred(checkpoint, made[0], device, ahead)
        weights.read_outside()
        _settle(made[0], weights.device)
    network: PreTrainedModel = made[0].network
    return network, weights


def _deferred(
    checkpoint: Checkpoint, conversion: Conversion, device: torch.device | None, ahead: bool | None
) -> Streamed:
    """The weights of a network, of which none is read yet."""
    network = conversion.network
    decoder = decoder_of(network)
    check_ties(network.all_tied_weights_keys, decoder.name)
    targets = conversion.targets(checkpoint.tensors)
    parts = partition(checkpoint.tensors, targets, network.state_dict(), decoder.name)
    sizes = sizes_of(network, decoder.layers)
    device = device or device_for(sizes.streamed)
    ahead = device.type != "cpu" if ahead is None else ahead
    return Streamed(checkpoint.folder, conversion, decoder.layers, parts, sizes, device, ahead)


@torch.no_grad()
def _settle(conversion: Conversion, device: torch.device) -> None:
    """Do what takes weights and was left out: ties, and what every load of Excise ends with."""
    network = conversion.network
    network.tie_weights(missing_keys=set(conversion.missing), recompute_mapping=False)
    for tensor in (*network.parameters(), *network.buffers()):
        if not tensor.is_meta:
            tensor.data = tensor.data.to(device)  # what was computed, not loaded
    network.requires_grad_(requires_grad=False)
    network.eval()
    align(network)
    set_plain_outputs(network)
