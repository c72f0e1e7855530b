"""The bytes of a file, plain or compressed, by offset and in bounded memory."""

import gzip
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experts.errors import ExciseError

STEP = 2**20  # bytes
NEXT = 2**14  # bytes that are looked through at once for the end of a line
KEPT = 2**16  # bytes of a compressed file that may be asked for once more
MARK = b"\xef\xbb\xbf"  # the byte-order mark of UTF-8
WIDE = {
    b"\xff\xfe": "UTF-16 or UTF-32",
    b"\xfe\xff": "UTF-16",
    b"\x00\x00\xfe\xff": "UTF-32",
}
PACKED = {
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"BZh91AY&SY": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
}
GZIP, PARQUET = b"\x1f\x8b", b"PAR1"


def head(path: Path, size: int = 4) -> bytes:
    """The first bytes of a regular file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            # A pipe would be waited for.
            raise ExciseError(f"{path}: not a regular file; give a file of text")
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise ExciseError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # a name with a null character
        raise ExciseError(f"{str(path)!r}: {error}") from error


class Data:
    """The content of a plain or gzipped UTF-8 file, its byte-order mark left out.

    forward: compressed, so that what lies far back is reached by starting again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: gzip.GzipFile | None = None
        self._kept, self._kept_at = b"", 0
        self._size: int | None = None
        self.base = 0
        first = head(path, 10)
        self.forward = first.startswith(GZIP)
        if self.forward:
            first = self.at(0, 10)
            self.close()
        self._check(first)
        self.base = len(MARK) if first.startswith(MARK) else 0

    def _check(self, first: bytes) -> None:
        for magic, name in WIDE.items():
            if first.startswith(magic):
                raise ExciseError(f"{self.path}: {name}, not UTF-8 text; convert it first (iconv -t UTF-8)")
        for magic, name in PACKED.items():
            if first.startswith(magic):
                raise ExciseError(f"{self.path}: packed with {name}; unpack it first (gzip is read as it is)")

    @property
    def size(self) -> int:
        """Bytes of the content. Of a compressed file this takes unpacking it once."""
        return self.weight(2**63)

    def weight(self, limit: int) -> int:
        """Bytes of the content, counted as far as `limit`."""
        if self._size is None and not self.forward:
            with _named(self.path):
                self._size = max(0, self.path.stat().st_size - self.base)
        if self._size is not None:
            return self._size
        total, raw = 0, b"-"
        with _named(self.path), gzip.open(self.path) as stream:
            while total <= limit and (raw := stream.read(STEP)):
                total += len(raw)
        if not raw:
            self._size = max(0, total - self.base)
        return max(0, total - self.base)

    def at(self, start: int, stop: int) -> bytes:
        """The bytes from start to stop, or to the end."""
        start, stop = start + self.base, stop + self.base
        with _named(self.path):
            if self.forward:
                return self._unpacked(start, stop)
            with self.path.open("rb") as file:
                file.seek(start)
                return file.read(max(0, stop - start))

    def find(self, byte: bytes, start: int, stop: int) -> int:
        """Where the byte is first found from start on, before stop; −1 where it is not."""
        while block := self.at(start, min(stop, start + NEXT)):
            if (found := block.find(byte)) >= 0:
                return start + found
            start += len(block)
        return -1

    def lines_before(self, offset: int) -> int:
        """Line ends before an offset. Reads all that is before it."""
        steps = range(0, offset, STEP)
        return sum(self.at(start, min(offset, start + STEP)).count(b"\n") for start in steps)

    def text(self, start: int, stop: int) -> str:
        """The text from start to stop, line ends as one sign. Raises ExciseError with the bad byte."""
        return self.decoded(self.at(start, stop), start)

    def decoded(self, raw: bytes, start: int) -> str:
        """Bytes from `start` as text, see `text`."""
        try:
            return raw.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as error:
            at = self.base + start + error.start
            raise ExciseError(f"{self.path}: not UTF-8 text (byte {at}); convert it first") from error

    def close(self) -> None:
        """Lets go of a compressed file."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._kept, self._kept_at = None, b"", 0

    def _unpacked(self, start: int, stop: int) -> bytes:
        if self._stream is None or start < self._kept_at:
            self.close()
            self._stream = gzip.GzipFile(self.path)
        while self._kept_at + len(self._kept) < stop:
            drop = min(len(self._kept), max(0, start - KEPT - self._kept_at))
            self._kept, self._kept_at = self._kept[drop:], self._kept_at + drop
            raw = self._stream.read(min(STEP, stop - self._kept_at - len(self._kept)))
            if not raw:
                break
            self._kept += raw
        return self._kept[max(0, start - self._kept_at) : max(0, stop - self._kept_at)]


class InCells:
    """A file whose cells are bytes."""

    def __init__(self, path: Path) -> None:
        self.path, self.data = path, Data(path)

    def weight(self, limit: int) -> int:
        """Bytes of text, counted as far as `limit`."""
        return self.data.weight(limit)

    def cells(self, size: int) -> int:
        """How many cells of `size` bytes there are."""
        if (weight := self.data.weight(size)) <= size:
            return int(weight > 0)  # one at most: nothing compressed has to be unpacked to its end
        return -(-self.data.size // size)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What goes wrong while reading, as one line that names the file."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = f"{path}: damaged or incomplete gzip file ({error})"
        raise ExciseError(f"{what}; get or pack it again") from error
    except OSError as error:
        raise ExciseError(f"{path}: {error.strerror or error}") from error
