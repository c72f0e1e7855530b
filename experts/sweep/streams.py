"""Hidden states that wait between the parts of a sweep: in memory, or in files where they do not fit."""

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from experts.sweep.spill import SpillFolder, bytes_of
from experts.sweep.stage import State

# What a state is of: "clean" or "branch", number of the batch, and whatever else tells it from the others.
Key = tuple[str | int, ...]


CPU = torch.device("cpu")


class Streams:
    """What enters the next layers, by batch and branch.

    Args:
        memory: bytes that states may take; None = no bound
        spill: takes what does not fit; None = everything stays in memory
        device: where states come from and go to; they wait in main memory

    Attributes:
        held: bytes in memory
        waiting: bytes of all states, by the first word of their keys
    """

    def __init__(
        self,
        memory: int | None = None,
        spill: SpillFolder | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.memory, self.spill, self.device = memory, spill, device
        self.held = 0
        self.waiting: Counter[str | int] = Counter()
        self._states: dict[Key, State] = {}
        self._files: dict[Key, tuple[str, int]] = {}  # name, bytes

    def __contains__(self, key: Key) -> bool:
        return key in self._states or key in self._files

    def __iter__(self) -> Iterator[Key]:
        """The keys of all states."""
        yield from [*self._states, *self._files]

    def put(self, key: Key, state: State) -> None:
        """Keep a state, in place of an earlier one of that key."""
        self.drop(key)
        state = {name: _alone(value).cpu() for name, value in state.items()}
        size = bytes_of(state)
        if self.spill is not None and self.memory is not None and self.held + size > self.memory:
            self._write(key, state)
            return
        self._states[key] = state
        self.held += size
        self.waiting[key[0]] += size

    def get(self, key: Key) -> State | None:
        """The state of that key; None where there is none. It goes on waiting."""
        state = self._states.get(key)
        if key in self._files:
            assert self.spill is not None, "wrote it"
            state = self.spill.read(self._files[key][0])
        return None if state is None else {place: value.to(self.device) for place, value in state.items()}

    def drop(self, key: Key) -> None:
        """Forget a state."""
        state = self._states.pop(key, None)
        if state is not None:
            size = bytes_of(state)
            self.held -= size
            self.waiting[key[0]] -= size
        elif key in self._files:
            name, size = self._files.pop(key)
            self.waiting[key[0]] -= size
            if self.spill is not None:
                self.spill.remove(name)

    def shelve(self, key: Key) -> None:
        """Move a state out of memory, if there is a folder: it is not needed soon."""
        if self.spill is not None and key in self._states:
            state = self._states[key]
            self.drop(key)
            self._write(key, state)

    def in_memory(self) -> dict[Key, State]:
        """The states that are in no file."""
        return dict(self._states)

    def in_files(self) -> dict[Key, tuple[str, int]]:
        """The others: name of the file, bytes."""
        return dict(self._files)

    def restore(self, states: dict[Key, State], files: dict[Key, tuple[str, int]]) -> None:
        """Take up what `in_memory` and `in_files` gave."""
        for key, (name, size) in files.items():
            self._files[key] = name, size
            self.waiting[key[0]] += size
        for key, state in states.items():
            self.put(key, state)

    def _write(self, key: Key, state: State) -> None:
        assert self.spill is not None, "asked before"
        name, size = self.spill.write(state), bytes_of(state)
        self._files[key] = name, size
        self.waiting[key[0]] += size


def _alone(value: Tensor) -> Tensor:
    """A tensor that keeps nothing in memory but itself. Strides stay."""
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
