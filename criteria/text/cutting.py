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


# Characters per token of a window that are tried before a text is given up as too short.
SPANS = (8, 32, 128)
NEAR = 2**12  # characters in which a place between words is looked for


class Cutter:
    """Cuts text into windows of W tokens.

    Attributes:
        tokenizer: makes tokens of text
        length: W, tokens per window
        bos: the token that every window begins with; None for none
        room: tokens of text per window, W or W − 1
        tokens: number of tokens of all the text that was cut last
        end: the end token, which separates joined documents; empty if the tokenizer has none
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int, bos: Bos = Bos.AUTO) -> None:
        self.tokenizer, self.length = tokenizer, length
        self.bos = bos_of(tokenizer, bos)
        self.room = length - (self.bos is not None)
        self.tokens = 0
        self.end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []

    def ids(self, document: str, text: str, begins: bool) -> list[int]:
        """Return the token ids of a text.

        Args:
            document: name of the text, for messages
            text: any length
            begins: whether a document begins here; a template may have written the first token itself

        Raises:
            ExciseError: the tokenizer fails.
        """
        ids: list[int] = []
        for block in blocks(text):
            ids += self._encode(document, block)
        if self.bos is not None and begins and ids[:1] == [self.bos]:
            return ids[1:]
        return ids

    def window(self, document: str, ids: list[int]) -> Window:
        """Return a window of the first tokens."""
        first = [] if self.bos is None else [self.bos]
        return Window(document, np.array([*first, *ids[: self.room]], dtype=np.int64))

    def windows(self, pieces: Iterable[Piece]) -> Iterator[Window]:
        """Yield all windows in the order of the text. The rest of a long document is left out."""
        self.tokens = 0
        packing = Packing(self)
        document: Document | None = None
        for piece in pieces:
            if document is None or piece.begins:
                yield from packing.close(document)
                document = Document(piece)
            ids = self.ids(piece.document, piece.text, piece.begins)
            self.tokens += len(ids)
            yield from self._full(document, ids)
        yield from packing.close(document)

    def window_of(self, piece: Piece, draw: Callable[[int], int], packing: "Packing") -> Window | None:
        """Return at most one window of a piece.

        Args:
            piece: a long text begins the window at a place that is drawn, a short one is joined with others
            draw: returns a random number below its argument
            packing: joins the short ones
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
        is_whole_document = piece.whole and len(part) == len(piece.text)
        return packing.add(piece.document, ids, piece.chat) if is_whole_document else None

    def _full(self, document: "Document", ids: list[int]) -> Iterator[Window]:
        """The windows that more tokens of a document fill; the document keeps the rest."""
        ids = document.ids + ids
        count = len(ids) // self.room
        for start in range(0, count * self.room, self.room):
            yield self.window(document.piece.document, ids[start : start + self.room])
        document.ids = ids[count * self.room :]
        document.long = document.long or count > 0

    def _encode(self, document: str, text: str) -> list[int]:
        try:
            # verbose=False: a document longer than the model's context is no mistake here, it is cut.
            ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        except Exception as error:  # tokenizers come with models, some as code of their own
            let_through(error)
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise ExciseError(f"{document}: the tokenizer cannot read this text ({reason})") from error
        return ids


@dataclass
class Document:
    """A document of which more may come.

    Attributes:
        piece: its first piece
        ids: tokens that are in no window yet
        long: whether it filled a window by itself
    """

    piece: Piece
    ids: list[int] = field(default_factory=list)
    long: bool = False


class Packing:
    """Joins short documents, with the end token between them, until a window is full.

    Attributes:
        cutter: makes the windows
        ids: tokens of the documents so far
        members: names of the documents so far
    """

    def __init__(self, cutter: Cutter) -> None:
        self.cutter = cutter
        self.ids: list[int] = []
        self.members: list[str] = []

    def close(self, document: Document | None) -> list[Window]:
        """Add a document of which nothing more comes, if it was too short for a window of its own.

        Returns:
            The window that it fills, if it fills one.
        """
        if document is None or document.long:
            return []
        window = self.add(document.piece.document, document.ids, document.piece.chat)
        return [] if window is None else [window]

    def add(self, document: str, ids: list[int], chat: bool) -> Window | None:
        """Add a short document.

        Args:
            document: its name
            ids: its tokens
            chat: whether a template wrote it, perhaps with the end token

        Returns:
            The window that it fills, None if there is still room.
        """
        end = self.cutter.end
        if chat and end and end[0] in ids[-2:]:
            end = []
        self.ids += [*ids, *end]
        self.members.append(document)
        if len(self.ids) < self.cutter.room:
            return None
        window = self.cutter.window(self._name(), self.ids)
        self.ids, self.members = [], []
        return window

    def _name(self) -> str:
        """The document of a window: the first and the last that it is joined from."""
        first, last = self.members[0], self.members[-1]
        return first if len(self.members) == 1 else f"{first} … {last}"


def blocks(text: str) -> Iterator[str]:
    """Yield a text in blocks that can be tokenised in bounded memory; in one, unless it is very long."""
    start = 0
    while len(text) - start > SMALL:
        stop = _between_words(text, start + BLOCK)
        yield text[start:stop]
        start = stop
    yield text[start:]


def _between_words(text: str, place: int) -> int:
    """The next place between words; `place` itself at the beginning, or where there is none near."""
    if place == 0:
        return 0
    places = [text.find(blank, place, place + NEAR) for blank in " \n\t"]
    return min((near for near in places if near >= 0), default=place)
