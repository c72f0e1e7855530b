"""JSON that is not a value a line: an array of rows, or values written over several lines.

It has to be read from its begin, and is, in bounded memory.
"""

import codecs
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from criteria.text.readers.json_lines import LONGEST
from criteria.text.readers.pieces import Cells, Piece, TextOf, located
from criteria.text.readers.storage import STEP, Data, InCells
from experts.errors import ExciseError

SPACE = " \t\r\n"
CUT = 16  # characters before the end of what was read, where an error may only mean that more has to be read


class JsonValues(InCells):
    """One file: the elements of its array, or its values, are rows. A row is in the cell it begins in."""

    def __init__(self, path: Path, text_of: TextOf) -> None:
        super().__init__(path)
        self.text_of = text_of

    def read(self, size: int, wanted: Sequence[int]) -> Cells:
        asked, cell = set(wanted), 0
        pieces: list[Piece] = []
        try:
            for number, (at, row) in enumerate(Values(self.data)):
                if at // size != cell:
                    if cell in asked:
                        yield cell, pieces
                    cell, pieces = at // size, []
                if wanted and cell > wanted[-1]:
                    return
                if cell in asked:
                    pieces += self._piece(f"{self.path}[{number}]", row)
            if cell in asked:
                yield cell, pieces
        finally:
            self.data.close()

    def _piece(self, name: str, row: Any) -> list[Piece]:
        with located(lambda: name):
            piece = self.text_of(name, row)
        return [piece] if piece else []


class Values:
    """(place in characters, value) of the rows of a JSON text that is read step by step."""

    def __init__(self, data: Data, step: int = STEP) -> None:
        self.data, self.step = data, step  # step: bytes that are read at once
        self.decoder, self.bytes = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
        self.buffer, self.base = "", 0  # base: the place of the buffer's begin
        self.read, self.done = 0, False  # read: bytes so far

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        at = self._skip(0)
        array = self._sign(at) == "["
        at = self._skip(at + 1) if array else at
        while (sign := self._sign(at)) and not (array and sign == "]"):
            value, end = self._value(at)
            yield self.base + at, value
            at = self._skip(end)
            at = self._after_element(at) if array else at
            if at > self.step:
                self.buffer, self.base, at = self.buffer[at:], self.base + at, 0
        if array and not sign:
            self._fail(at, "the array does not end")
        if array and self._sign(self._skip(at + 1)):
            self._fail(at, "the file goes on after the array")

    def _after_element(self, at: int) -> int:
        """The place of the next element, or of the ] behind the last."""
        sign = self._sign(at)
        if sign == ",":
            at = self._skip(at + 1)
            if self._sign(at) == "]":
                self._fail(at, "no value between , and ]")
        elif sign not in ("]", ""):
            self._fail(at, "no comma after an element")
        return at

    def _value(self, at: int) -> tuple[Any, int]:
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, at)
                if self.done or not isinstance(value, int | float) or end <= len(self.buffer) - CUT:
                    return value, end
                # A number may go on: 1 may become 1.5e3.
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.buffer) - CUT
                if self.done or not cut:
                    self._fail(error.pos, error.msg)
            except (ValueError, RecursionError) as error:
                self._fail(at, str(error))
            if len(self.buffer) - at > LONGEST:
                self._fail(at, f"a value of more than {LONGEST:,} characters is no row")
            self._more(max(self.step, len(self.buffer) - at))

    def _skip(self, at: int) -> int:
        """The next place that is not blank."""
        while True:
            while at < len(self.buffer) and self.buffer[at] in SPACE:
                at += 1
            if at < len(self.buffer) or self.done:
                return at
            self._more(self.step)

    def _sign(self, at: int) -> str:
        return self.buffer[at : at + 1]

    def _more(self, size: int) -> None:
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
