"""Pieces of documents to token windows: cut where a document is long, joined where documents are short."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from criteria.text.bos import Bos, bos_of
from criteria.text.readers.pieces import BLOCK, SMALL, Piece
from experts.arrays import Ids
from experts.errors import ExciseError, let_through, one_line


class Window(NamedTuple):
    """One window.

    Attributes:
        document: name of the text it is from
        tokens: token ids [W]
    """

    document: str
    tokens: Ids


SPANS = (8, 32, 128)  # characters per token of a window that are tried before a text is given up as too short


class Cutter:
    """Makes windows of `length` tokens, the first of them the beginning of text where the model wants one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int, bos: Bos = Bos.AUTO) -> None:
        self.tokenizer, self.length = tokenizer, length
        self.bos = bos_of(tokenizer, bos)
        self.room = length - (self.bos is not None)
        self.tokens = 0  # of all the text that was cut last
        self.end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []

    def ids(self, document: str, text: str, begins: bool) -> list[int]:
        """Tokens of a text. begins: of a document, where a template may have written its own."""
        ids = [token for block in blocks(text) for token in self._encoded(document, block)]
        return ids[1:] if self.bos is not None and begins and ids[:1] == [self.bos] else ids

    def window(self, document: str, ids: list[int]) -> Window:
        """The first tokens as a window."""
        first = [] if self.bos is None else [self.bos]
        return Window(document, np.array([*first, *ids[: self.room]], dtype=np.int64))

    def windows(self, pieces: Iterable[Piece]) -> Iterator[Window]:
        """All windows, in the order of the text. The rest of a long document is left out."""
        self.tokens, packing = 0, Packing(self)
        document: Document | None = None
        for piece in pieces:
            if document is None or piece.begins:
                if document and (window := packing.finished(document)):
                    yield window
                document = Document(piece)
            ids = self.ids(piece.document, piece.text, piece.begins)
            self.tokens += len(ids)
            yield from self._full(document, ids)
        if document and (window := packing.finished(document)):
            yield window

    def _full(self, document: "Document", ids: list[int]) -> Iterator[Window]:
        """The windows that more tokens of a document fill; it keeps the rest."""
        ids = document.ids + ids
        count = len(ids) // self.room
        for start in range(0, count * self.room, self.room):
            yield self.window(document.piece.document, ids[start : start + self.room])
        document.ids = ids[count * self.room :]
        document.long = document.long or count > 0

    def one(self, piece: Piece, draw: Callable[[int], int], packing: "Packing") -> Window | None:
        """At most one window of a piece.

        Where the text is long, from a place that is drawn; where it is short, joined with others.
        """
        slots = max(1, len(piece.text) // (SPANS[0] * self.length))
        start = _between_words(piece.text, len(piece.text) * draw(slots) // slots)
        for span in SPANS:
            part = piece.text[start : start + span * self.length]
            ids = self.ids(piece.document, part, piece.begins and start == 0)
            if len(ids) >= self.room:
                return self.window(piece.document, ids)
            if start + len(part) == len(piece.text):
                break
        whole = piece.whole and len(part) == len(piece.text)
        return packing.add(piece.document, ids, piece.chat) if whole else None

    def _encoded(self, document: str, text: str) -> list[int]:
        try:
            # verbose=False: a document longer than the model's context is no mistake here, it is cut.
            ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        except Exception as error:  # tokenizers come with models, some as code of their own
            let_through(error)
            said = f"{type(error).__name__}: {one_line(error)}"
            raise ExciseError(f"{document}: the tokenizer cannot read this text ({said})") from error
        return ids


@dataclass
class Document:
    """A document of which more may come. piece: its first; long: it gave a window."""

    piece: Piece
    ids: list[int] = field(default_factory=list)
    long: bool = False


class Packing:
    """Short documents, joined with the end token between them until a window is full."""

    def __init__(self, cutter: Cutter) -> None:
        self.cutter = cutter
        self.ids: list[int] = []
        self.members: list[str] = []

    def finished(self, document: Document) -> Window | None:
        """The window that a document fills up, if it was too short for one of its own."""
        return None if document.long else self.add(document.piece.document, document.ids, document.piece.chat)

    def add(self, document: str, ids: list[int], chat: bool) -> Window | None:
        """The window that a short document fills up. chat: a template may have written the end token."""
        end = [] if chat and self.cutter.end and self.cutter.end[0] in ids[-2:] else self.cutter.end
        self.ids += [*ids, *end]
        self.members.append(document)
        if len(self.ids) < self.cutter.room:
            return None
        name = self.members[0] if len(self.members) == 1 else f"{self.members[0]} … {self.members[-1]}"
        window = self.cutter.window(name, self.ids)
        self.ids, self.members = [], []
        return window


def blocks(text: str) -> Iterator[str]:
    """A text in blocks that can be tokenised in bounded memory: itself, unless it is very long."""
    start = 0
    while len(text) - start > SMALL:
        stop = _between_words(text, start + BLOCK)
        yield text[start:stop]
        start = stop
    yield text[start:]


def _between_words(text: str, place: int) -> int:
    """The next place between words; the place itself at the text's begin, or where there is none near."""
    if place == 0:
        return 0
    near = (found for sign in " \n\t" if (found := text.find(sign, place, place + 2**12)) >= 0)
    return min(near, default=place)
