"""Load a network in the way that was chosen, and find its MoE layers."""

from experts.anatomy import Anatomy, dissect
from experts.disk.shards import Checkpoint
from experts.loading import load_network
from experts.memory_choice import Choice
from experts.streaming.open import open_streamed


def load_anatomy(
    checkpoint: Checkpoint,
    choice: Choice,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    pruned: bool = False,
) -> Anatomy:
    """Load a network, in evaluation mode.

    Args:
        checkpoint: headers of its folder
        choice: whether its weights stay in memory, and where they go
        dtype: precision in memory: auto (as stored), float32, bfloat16, float16
        trust_remote_code: run code that comes with the checkpoint
        pruned: layers may hold different numbers of experts

    Raises:
        ExciseError: the network cannot be loaded, or not in this way, or has no MoE layers.
    """
    if not choice.streamed:
        network = load_network(checkpoint.folder, dtype, trust_remote_code, choice.device)
        return dissect(network, pruned)
    network, weights = open_streamed(checkpoint, dtype, trust_remote_code, choice.device)
    return dissect(network, pruned, weights)
