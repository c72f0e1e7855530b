"""Pieces of documents to token windows: cut where a document is long, joined where documents are short."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from criteria.pieces import BLOCK, SMALL, Piece
from criteria.sources import Bos
from experts.errors import ExciseError, one_line

Window = tuple[str, NDArray[np.int64]]  # (document, tokens [W])
SPANS = (8, 32, 128)  # characters per token of a window that are tried before a text is given up as too short


def bos_of(tokenizer: PreTrainedTokenizerBase, choice: Bos) -> int | None:
    """The token every window begins with, None = none. auto: what the tokenizer itself does with one text."""
    token = tokenizer.bos_token_id
    if choice == "always" and token is None:
        raise ExciseError("bos: always, but the tokenizer has no token for the beginning of a text; use bos: auto")
    if choice == "never" or token is None:
        return None
    return int(token) if choice == "always" or tokenizer("x")["input_ids"][:1] == [token] else None


class Cutter:
    """Makes windows of `length` tokens, the first of them the beginning of text where the model wants one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int, bos: Bos = "auto") -> None:
        self.tokenizer, self.length = tokenizer, length
        self.bos = bos_of(tokenizer, bos)
        self.room = length - (self.bos is not None)
        self.left = 0  # tokens that the last text had too few of for another window
        self.end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []

    def ids(self, document: str, text: str, begins: bool) -> list[int]:
        """Tokens of a text. begins: of a document's begin, where a template may have written what the window begins with anyway."""
        ids = [token for block in blocks(text) for token in self._encoded(document, block)]
        return ids[1:] if self.bos is not None and begins and ids[:1] == [self.bos] else ids

    def window(self, document: str, ids: list[int]) -> Window:
        first = [] if self.bos is None else [self.bos]
        return document, np.array([*first, *ids[: self.room]], dtype=np.int64)

    def windows(self, pieces: Iterable[Piece]) -> Iterator[Window]:
        """All windows, in the order of the text. What a long document has too little for a window is left out."""
        packing, open_ = Packing(self), None
        for piece in pieces:
            if piece.begins or open_ is None:
                yield from packing.finished(open_)
                open_ = Open(piece)
            open_.ids += self.ids(piece.document, piece.text, piece.begins)
            open_.chat = piece.chat
            while len(open_.ids) >= self.room:
                yield self.window(piece.document, open_.ids)
                open_.ids, open_.long = open_.ids[self.room :], True
        yield from packing.finished(open_)
        self.left = len(packing.ids)

    def one(self, piece: Piece, draw: Callable[[int], int], packing: "Packing") -> Iterator[Window]:
        """At most one window of a piece: from a place that is drawn where the text is long; joined with others where it is short."""
        span = SPANS[0] * self.length
        slots = max(1, len(piece.text) // span)
        start = _between_words(piece.text, len(piece.text) * draw(slots) // slots)
        for size in SPANS:
            part = piece.text[start : start + size * self.length]
            ids = self.ids(piece.document, part, piece.begins and start == 0)
            if len(ids) >= self.room:
                yield self.window(piece.document, ids)
                return
            if len(part) == len(piece.text) - start:
                break
        if piece.whole and start == 0 and len(part) == len(piece.text):
            yield from packing.add(piece.document, ids, piece.chat)

    def _encoded(self, document: str, text: str) -> list[int]:
        try:
            # verbose=False: a document longer than the model's context is no mistake here, it is cut.
            ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        except Exception as error:  # tokenizers come with models, some as code of their own
            raise ExciseError(f"{document}: the tokenizer cannot read this text ({type(error).__name__}: {one_line(error)})") from error
        return ids


@dataclass
class Open:
    """A document of which more may come. long: it gave a window."""

    piece: Piece
    ids: list[int] = field(default_factory=list)
    long: bool = False
    chat: bool = False


class Packing:
    """Short documents, joined with the end token between them until a window is full."""

    def __init__(self, cutter: Cutter) -> None:
        self.cutter = cutter
        self.ids: list[int] = []
        self.members: list[str] = []

    def finished(self, document: Open | None) -> Iterator[Window]:
        if document is not None and not document.long:
            yield from self.add(document.piece.document, document.ids, document.chat)

    def add(self, document: str, ids: list[int], chat: bool) -> Iterator[Window]:
        """A template may have written the end of a conversation already."""
        end = [] if chat and self.cutter.end and self.cutter.end[0] in ids[-2:] else self.cutter.end
        self.ids += [*ids, *end]
        self.members.append(document)
        if len(self.ids) >= self.cutter.room:
            name = self.members[0] if len(self.members) == 1 else f"{self.members[0]} … {self.members[-1]}"
            yield self.cutter.window(name, self.ids)
            self.ids, self.members = [], []


def blocks(text: str) -> Iterator[str]:
    """A text in blocks that can be tokenised in bounded memory: itself, unless it is very long."""
    start = 0
    while len(text) - start > SMALL:
        stop = _between_words(text, start + BLOCK)
        yield text[start:stop]
        start = stop
    yield text[start:]


def _between_words(text: str, place: int) -> int:
    """The next place between words from one that is not the text's begin; the place itself where there is none near."""
    if place == 0:
        return 0
    near = (found for sign in " \n\t" if (found := text.find(sign, place, place + 2**12)) >= 0)
    return min(near, default=place)
