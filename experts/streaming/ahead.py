"""The next decoder layer, read while another one is computed with."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class ReadAhead:
    """One layer at a time, in a thread of its own.

    The thread touches no module but those of its layer.
    """

    def __init__(self, load: Callable[[int], None], drop: Callable[[int], None]) -> None:
        self._load, self._drop = load, drop
        self._pool = ThreadPoolExecutor(1, "read-ahead")
        self._pending: tuple[int, Future[None]] | None = None

    def start(self, layer: int) -> None:
        """Begin to read a layer."""
        assert self._pending is None, "one layer at a time"
        self._pending = layer, self._pool.submit(self._load, layer)

    def take(self, layer: int) -> bool:
        """Wait for a layer, and hand it over.

        Returns:
            Whether it was the one that is being read. Another one is dropped.

        Raises:
            ExciseError: the layer cannot be read.
        """
        if self._pending is None or self._pending[0] != layer:
            self.forget()
            return False
        _, future = self._pending
        self._pending = None
        future.result()
        return True

    def forget(self) -> None:
        """Drop the layer that was read and that nobody wants, or that could not be read."""
        if self._pending is None:
            return
        layer, future = self._pending
        self._pending = None
        if not future.cancel():
            future.exception()  # waits
        self._drop(layer)
