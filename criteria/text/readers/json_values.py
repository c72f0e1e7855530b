"""JSON that is not one value per line: an array of rows, or values written over several lines.

It has to be read from its beginning, and is, in bounded memory.
"""

import codecs
import json
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from criteria.text.readers.json_rows import LONGEST, JsonRows
from criteria.text.readers.pieces import Cells, Piece
from criteria.text.readers.storage import STEP, Data
from experts.errors import ExciseError

BLANK = " \t\r\n"
CUT = 16  # characters before the end of what was read, where an error may only mean that more has to be read


class JsonValues(JsonRows):
    """A file whose rows are the elements of its array, or its values; a row is named by its number."""

    def read(self, size: int, wanted: Sequence[int]) -> Cells:
        asked = set(wanted)
        cell = 0
        pieces: list[Piece] = []
        try:
            for number, (place, row) in enumerate(Values(self.data)):
                if place // size != cell:
                    if cell in asked:
                        yield cell, pieces
                    cell, pieces = place // size, []
                if wanted and cell > wanted[-1]:
                    return
                if cell in asked:
                    pieces += self._piece(f"{self.path}[{number}]", row)
            if cell in asked:
                yield cell, pieces
        finally:
            self.data.close()

    def _piece(self, name: str, row: Any) -> list[Piece]:
        return self.piece(name, lambda: row, lambda: name)


class Values:
    """Iterates over (place in characters, value) of the rows of a JSON text, which is read step by step.

    Attributes:
        data: the content of the file
        step: bytes that are read at once
        decoder: of JSON
        bytes: decoder of UTF-8, holds the bytes of an unfinished character
        buffer: characters that are read and not yet passed
        base: the place of the buffer's first character
        read: bytes so far
        done: whether the file is read to its end
    """

    def __init__(self, data: Data, step: int = STEP) -> None:
        self.data, self.step = data, step
        self.decoder = json.JSONDecoder()
        self.bytes = codecs.getincrementaldecoder("utf-8")()
        self.buffer, self.base = "", 0
        self.read, self.done = 0, False

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        at = self._skip(0)
        array = self._character(at) == "["
        if array:
            at = self._skip(at + 1)
        while (character := self._character(at)) and not (array and character == "]"):
            value, end = self._value(at)
            yield self.base + at, value
            at = self._skip(end)
            if array:
                at = self._after_element(at)
            if at > self.step:
                self._forget(at)
                at = 0
        if array and not character:
            self._fail(at, "the array does not end")
        if array and self._character(self._skip(at + 1)):
            self._fail(at, "the file goes on after the array")

    def _forget(self, at: int) -> None:
        """Drop the characters of the buffer before a place."""
        self.buffer = self.buffer[at:]
        self.base += at

    def _after_element(self, at: int) -> int:
        """The place of the next element, or of the ] behind the last."""
        character = self._character(at)
        if character == ",":
            at = self._skip(at + 1)
            if self._character(at) == "]":
                self._fail(at, "no value between , and ]")
        elif character not in ("]", ""):
            self._fail(at, "no comma after an element")
        return at

    def _value(self, at: int) -> tuple[Any, int]:
        """(value that begins at a place, the place behind it); reads on until it is complete."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, at)
                if self._complete(value, end):
                    return value, end
            except json.JSONDecodeError as error:
                near_end = error.pos >= len(self.buffer) - CUT
                cut = error.msg.startswith("Unterminated string") or near_end
                if self.done or not cut:
                    self._fail(error.pos, error.msg)
            except (ValueError, RecursionError) as error:
                self._fail(at, str(error))
            if len(self.buffer) - at > LONGEST:
                self._fail(at, f"a value of more than {LONGEST:,} characters is no row")
            self._more(max(self.step, len(self.buffer) - at))

    def _complete(self, value: Any, end: int) -> bool:
        """Whether a value is read to its end: a number may go on, 1 may become 1.5e3."""
        return self.done or not isinstance(value, int | float) or end <= len(self.buffer) - CUT

    def _skip(self, at: int) -> int:
        """The next place that is not blank."""
        while True:
            while at < len(self.buffer) and self.buffer[at] in BLANK:
                at += 1
            if at < len(self.buffer) or self.done:
                return at
            self._more(self.step)

    def _character(self, at: int) -> str:
        """The character at a place; empty behind the end."""
        return self.buffer[at : at + 1]

    def _more(self, size: int) -> None:
        """Read more bytes into the buffer."""
        raw = self.data.at(self.read, self.read + size)
        self.done = not raw
        waiting = len(self.bytes.getstate()[0])
        try:
            self.buffer += self.bytes.decode(raw, final=self.done)
        except UnicodeDecodeError as error:
            place = self.data.base + self.read - waiting + error.start
            raise ExciseError(f"{self.data.path}: not UTF-8 text (byte {place}); convert it first") from error
        self.read += len(raw)

    def _fail(self, at: int, what: str) -> NoReturn:
        raise ExciseError(f"{self.data.path}: not valid JSON ({what}, near character {self.base + at})")
