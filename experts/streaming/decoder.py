"""The decoder layers of a network."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from experts.anatomy import dissect
from experts.disk.tensors import list_of
from experts.errors import ExciseError
from experts.streaming.parts import layer_of


@dataclass(frozen=True)
class Decoder:
    """The decoder layers that hold the MoE blocks.

    Attributes:
        name: of their list among the network's modules
        layers: the list
    """

    name: str
    layers: nn.ModuleList


def decoder_of(network: PreTrainedModel) -> Decoder:
    """Find the decoder layers of a network, which may be without data.

    Raises:
        ExciseError: it has no MoE layers, or a layout that is not supported.
    """
    name = list_of(dissect(network, pruned=True).layers[0].name)
    layers = network.get_submodule(name)
    if not isinstance(layers, nn.ModuleList):
        raise ExciseError(f"{name}: expected the list of decoder layers, found {type(layers).__name__}")
    return Decoder(name, layers)


def check_ties(ties: dict[str, str], layers: str) -> None:
    """Refuse weights of decoder layers that are those of another module too.

    Args:
        ties: weight -> the one that it is
        layers: name of the list of decoder layers
    """
    for weight in (*ties, *ties.values()):
        if layer_of(weight, layers) is not None:
            raise ExciseError(
                f"{weight} is shared with another module, so its layer cannot be read alone; "
                "use `memory.model: resident`"
            )
