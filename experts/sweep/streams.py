"""Hidden states that wait between the parts of a sweep."""

from collections.abc import Hashable

from experts.sweep.stage import State


class Streams:
    """What enters the next layer, by batch and branch."""

    def __init__(self) -> None:
        self._states: dict[Hashable, State] = {}

    def put(self, key: Hashable, state: State) -> None:
        """Keep a state."""
        self._states[key] = state

    def get(self, key: Hashable) -> State | None:
        """The state of that key; None where there is none."""
        return self._states.get(key)

    def take(self, key: Hashable) -> State | None:
        """The same, and forget it."""
        return self._states.pop(key, None)
