"""Open a checkpoint without its decoder layers."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from experts.anatomy import dissect
from experts.disk.shards import Checkpoint
from experts.disk.tensors import list_of
from experts.errors import ExciseError
from experts.loading import SHARE
from experts.plain_outputs import set_plain_outputs
from experts.pretrained import align, check_files, from_pretrained, refusing
from experts.streaming.files import without_data as headers_of
from experts.streaming.layers import Streamed
from experts.streaming.library import Conversion, without_data
from experts.streaming.parts import Part, layer_of, partition
from experts.streaming.sizes import Sizes, sizes_of


@dataclass(frozen=True)
class Decoder:
    """The decoder layers of a network.

    Attributes:
        name: of the list among the network's modules
        layers: the list
    """

    name: str
    layers: nn.ModuleList


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
    with refusing(folder, "the model"):
        conversion = _without_weights(checkpoint, dtype, trust_remote_code)
        network = conversion.network
        decoder = decoder_of(network)
        _check_ties(network, decoder.name)
        sizes = sizes_of(network, decoder.layers)
        device = device or _best_device(sizes)
        outside, parts = _parts(checkpoint, conversion, decoder)
        ahead = device.type != "cpu" if ahead is None else ahead
        weights = Streamed(folder, conversion, decoder.layers, parts, sizes, device, ahead)
        weights.read(outside)
        _settle(conversion, device)
    return network, weights


def decoder_of(network: PreTrainedModel) -> Decoder:
    """The decoder layers that hold the MoE blocks."""
    name = list_of(dissect(network).layers[0].name)
    layers = network.get_submodule(name)
    if not isinstance(layers, nn.ModuleList):
        raise ExciseError(f"{name}: expected the list of decoder layers, found {type(layers).__name__}")
    return Decoder(name, layers)


def _without_weights(checkpoint: Checkpoint, dtype: str, trust_remote_code: bool) -> Conversion:
    """The network without its weights, and the way to them."""
    with without_data(headers_of(checkpoint.tensors)) as made:
        from_pretrained(checkpoint.folder, dtype, trust_remote_code)
    return made[0]


def _parts(checkpoint: Checkpoint, conversion: Conversion, decoder: Decoder) -> tuple[Part, dict[int, Part]]:
    targets = conversion.targets(checkpoint.tensors)
    return partition(checkpoint.tensors, targets, conversion.network.state_dict(), decoder.name)


def _check_ties(network: PreTrainedModel, layers: str) -> None:
    """Refuse weights of decoder layers that are those of another module too."""
    for pair in network.all_tied_weights_keys.items():
        for weight in pair:
            if layer_of(weight, layers) is not None:
                raise ExciseError(
                    f"{weight} is shared with another module, so its layer cannot be read alone; "
                    "use `memory.model: resident`"
                )


def _best_device(sizes: Sizes) -> torch.device:
    """The GPU where the weights leave a fifth of its free memory for the work, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    free, _ = torch.cuda.mem_get_info()
    return torch.device("cuda" if sizes.streamed < SHARE * free else "cpu")


@torch.no_grad()
def _settle(conversion: Conversion, device: torch.device) -> None:
    """Finish what `from_pretrained` does after weights are there: ties; and what Excise does after it."""
    network = conversion.network
    network.tie_weights(missing_keys=set(conversion.missing), recompute_mapping=False)
    for tensor in (*network.parameters(), *network.buffers()):
        if not tensor.is_meta:
            tensor.data = tensor.data.to(device)  # what was computed, not loaded
    network.requires_grad_(requires_grad=False)
    network.eval()
    align(network)
    set_plain_outputs(network)
