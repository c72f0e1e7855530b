"""Load a network in the way that was chosen, and find its MoE layers."""

from dataclasses import dataclass, replace
from pathlib import Path

from experts.anatomy import Anatomy, dissect
from experts.disk.shards import Checkpoint, open_checkpoint
from experts.limits import free_memory, processes_here
from experts.loading import load_network
from experts.memory_choice import Choice, choose
from experts.memory_rule import room_for
from experts.memory_settings import MemorySettings
from experts.room import Room
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
        device = choice.device
        network = load_network(checkpoint.folder, dtype, trust_remote_code, device, choice.spread)
        return dissect(network, pruned)
    network, weights = open_streamed(checkpoint, dtype, trust_remote_code, choice.device)
    return dissect(network, pruned, weights)


@dataclass(frozen=True)
class Opening:
    """How a model is loaded, in this process or another one. Every machine has its files in the same place.

    Attributes:
        folder: of the checkpoint
        dtype: precision in memory: auto (as stored), float32, bfloat16, float16
        trust_remote_code: run code that comes with the checkpoint
        memory: whether the weights stay in memory, and how much of it may be taken
        key: identity of the model as it computes
    """

    folder: Path
    dtype: str
    trust_remote_code: bool
    memory: MemorySettings
    key: str

    def __call__(self) -> Anatomy:
        """Load it, in the way that this process has room for."""
        checkpoint = open_checkpoint(self.folder)
        return self.load(checkpoint, choose(checkpoint, self.memory, self.dtype, self.trust_remote_code))

    def load(self, checkpoint: Checkpoint, choice: Choice, *, pruned: bool = False) -> Anatomy:
        """Load it in the way that was chosen. pruned: layers may hold different numbers of experts."""
        anatomy = load_anatomy(checkpoint, choice, self.dtype, self.trust_remote_code, pruned)
        return replace(anatomy, room=self._room(choice)) if choice.streamed else anatomy

    def _room(self, choice: Choice) -> Room:
        """What hidden states may take beside the weights."""
        free = free_memory()
        limit = self.memory.limit
        most = free if limit is None else min(free, limit // processes_here())
        left = most - choice.weights if choice.device.type == "cpu" else most
        return Room(room_for(max(0, left)), self.memory.spill, self.key)
