"""How many bytes of hidden states wait between the layers of a sweep, and how many of them on disk."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """Estimates in bytes.

    Attributes:
        clean: the clean states of all batches that wait in front of a layer
        branches: those of all branches that are known before, if none had to wait for room
        num_layers: decoder layers in which clean states are kept when branches have to wait for room
        to_the_end: whether the clean forward runs through all layers
    """

    clean: int
    branches: int
    num_layers: int
    to_the_end: bool = True

    def for_clean(self, memory: int) -> int:
        """The part of the memory that branches leave to clean states, which come back in every layer."""
        return min(self.clean, memory // 2) if self.to_the_end else 0

    def passes(self, memory: int) -> int:
        """Readings of the layers until every branch had room."""
        return max(1, -(-self.branches // max(1, memory - self.for_clean(memory))))

    def on_disk(self, memory: int) -> int:
        """Bytes of files, at most, without records."""
        for_clean = self.for_clean(memory)
        spilled = self.clean - for_clean if self.to_the_end else 0
        if self.branches > memory - for_clean:
            spilled += self.clean * (self.num_layers if self.to_the_end else 1)
        return spilled


def no_room(spill: object, title: str, size: str, memory: str, free: str) -> str:
    """The refusal of a sweep whose waiting states do not fit on the disk.

    Args:
        spill: the folder
        title: of the sweep
        size: what it needs there, in words
        memory: what it may take in memory, in words
        free: what is free on the disk, in words
    """
    return (
        f"{spill}: {title}: waiting states will need {size} beside {memory} of memory, {free} are free; "
        "free some, or set memory.spill to another folder"
    )
