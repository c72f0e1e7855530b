"""The bytes of a file, plain or compressed, by offset and in bounded memory."""

import gzip
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experts.errors import ExciseError

STEP = 2**20  # bytes that are read at once
LINE_STEP = 2**14  # bytes that are looked through at once for the end of a line
KEPT = 2**16  # bytes of a compressed file that may be asked for once more
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of UTF-8

# First bytes of text in another encoding, and of compressed files that are not read.
OTHER_ENCODINGS = {
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

GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"


def head(path: Path, size: int = 4) -> bytes:
    """Return the first bytes of a regular file.

    Raises:
        ExciseError: it is missing, unreadable or no regular file.
    """
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
    """The content of a plain or gzipped UTF-8 file. All offsets are in bytes of the content.

    Attributes:
        path: of the file
        forward: whether it is compressed, so that what lies far back is reached by starting again
        base: bytes of the byte-order mark, which is no part of the content
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
        self.base = len(BYTE_ORDER_MARK) if first.startswith(BYTE_ORDER_MARK) else 0

    def _check(self, first: bytes) -> None:
        """Refuse other encodings and compressions."""
        for magic, name in OTHER_ENCODINGS.items():
            if first.startswith(magic):
                raise ExciseError(f"{self.path}: {name}, not UTF-8 text; convert it first (iconv -t UTF-8)")
        for magic, name in PACKED.items():
            if first.startswith(magic):
                raise ExciseError(f"{self.path}: packed with {name}; unpack it first (gzip is read as it is)")

    @property
    def size(self) -> int:
        """Bytes of the content. A compressed file is unpacked once for this."""
        return self.weight(2**63)

    def weight(self, limit: int) -> int:
        """Return the bytes of the content, counted as far as `limit`: more is only known to be more."""
        if self._size is None and not self.forward:
            with _named(self.path):
                self._size = max(0, self.path.stat().st_size - self.base)
        return self._unpacked_size(limit) if self._size is None else self._size

    def _unpacked_size(self, limit: int) -> int:
        """Bytes of the content of a compressed file, counted as far as `limit`."""
        total = 0
        at_end = False
        with _named(self.path), gzip.open(self.path) as stream:
            while total <= limit and not at_end:
                raw = stream.read(STEP)
                total += len(raw)
                at_end = not raw
        size = max(0, total - self.base)
        if at_end:
            self._size = size
        return size

    def at(self, start: int, stop: int) -> bytes:
        """Return the bytes from start to stop, or to the end."""
        start, stop = start + self.base, stop + self.base
        with _named(self.path):
            if self.forward:
                return self._unpacked(start, stop)
            with self.path.open("rb") as file:
                file.seek(start)
                return file.read(max(0, stop - start))

    def find(self, byte: bytes, start: int, stop: int) -> int:
        """Return where a byte first occurs from start on, before stop; −1 where it does not."""
        while block := self.at(start, min(stop, start + LINE_STEP)):
            place = block.find(byte)
            if place >= 0:
                return start + place
            start += len(block)
        return -1

    def lines_before(self, offset: int) -> int:
        """Return the number of line ends before an offset. Reads all that is before it."""
        steps = range(0, offset, STEP)
        return sum(self.at(start, min(offset, start + STEP)).count(b"\n") for start in steps)

    def text(self, start: int, stop: int) -> str:
        """Return the text from start to stop, see `decoded`."""
        return self.decoded(self.at(start, stop), start)

    def decoded(self, raw: bytes, start: int) -> str:
        """Return bytes as text, with \\n for every line end.

        Args:
            raw: the bytes
            start: offset of the first, for the message

        Raises:
            ExciseError: they are not UTF-8; the message names the first bad byte.
        """
        try:
            return raw.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as error:
            at = self.base + start + error.start
            raise ExciseError(f"{self.path}: not UTF-8 text (byte {at}); convert it first") from error

    def close(self) -> None:
        """Close a compressed file. It can be read again."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._kept, self._kept_at = None, b"", 0

    def _unpacked(self, start: int, stop: int) -> bytes:
        """Bytes of a compressed file. The last KEPT bytes before them stay in memory."""
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
    """A file whose cells are stretches of bytes.

    Attributes:
        path: of the file
        data: its content
    """

    def __init__(self, path: Path) -> None:
        self.path, self.data = path, Data(path)

    def weight(self, limit: int) -> int:
        """Return the bytes of text, counted as far as `limit`."""
        return self.data.weight(limit)

    def cells(self, size: int) -> int:
        """Return the number of cells of `size` bytes."""
        weight = self.data.weight(size)
        if weight <= size:
            return int(weight > 0)  # one at most: nothing compressed has to be unpacked to its end
        return -(-self.data.size // size)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in whatever goes wrong while it is read."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = f"{path}: damaged or incomplete gzip file ({error})"
        raise ExciseError(f"{what}; get or pack it again") from error
    except OSError as error:
        raise ExciseError(f"{path}: {error.strerror or error}") from error
