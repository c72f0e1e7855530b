"""Text to token windows: sources, documents, seeded choice, content hash, overlap.

A source yields documents; a document at least one window long is cut into consecutive full windows, shorter ones of the same
source are joined (with the end token between them) until a window is full. Every window knows its document: the unit that
intervals are clustered by. Where the tokenizer begins a text with a token of its own, every window begins with it;
what follows it counts like any other position.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from criteria.text.bos import Bos
from criteria.text.cutting import Cutter, Window
from criteria.text.readers.pieces import BLOCK, SMALL
from criteria.text.readers.plain import PlainText
from criteria.text.reading import opened
from criteria.text.rows import RowText
from criteria.text.sampling import TooFewError, every, sample
from criteria.text.sources import Source
from experts.errors import ExciseError
from experts.notes import tell

SHINGLE = 16  # tokens; windows that share half of their runs of this length overlap


@dataclass(frozen=True)
class Windows:
    """Token windows. N windows of W tokens.

    tokens: [N, W] int64; mask: [N, W] bool, False on padding; document: [N] index into `documents`; domain: [N] index into `domains`.
    """

    tokens: NDArray[np.int64]
    mask: NDArray[np.bool_]
    document: NDArray[np.int64]
    domain: NDArray[np.int64]
    documents: tuple[str, ...]
    domains: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def hash(self) -> str:
        """Identity of the content: tokens, padding and domains."""
        parts = (self.tokens, self.mask, self.domain)
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()[
            :16
        ]

    def select(self, rows: NDArray[np.int64]) -> "Windows":
        return Windows(
            self.tokens[rows],
            self.mask[rows],
            self.document[rows],
            self.domain[rows],
            self.documents,
            self.domains,
        )


def read_windows(
    sources: Iterable[Source],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    sequences: int,
    seed: int,
    bos: Bos = Bos.AUTO,
    chat_template: bool | str | None = None,
    say: Callable[[str], None] = tell,
) -> Windows:
    """`sequences` windows of `length` tokens, an equal share from every source, chosen with `seed`.

    chat_template: of sources that do not say; say: takes notes on what was read.
    """
    sources = list(sources)
    if sequences < len(sources):
        few = f"data: {sequences} windows for {len(sources)} sources, which give one each at least"
        raise ExciseError(f"{few}; raise sequences")
    cutter = Cutter(tokenizer, length, bos)
    domains = tuple(dict.fromkeys(source.label for source in sources))
    rows, document, domain = [], [], []
    documents: dict[str, int] = {}  # one file may feed two sources: it stays one document
    for number, source in enumerate(sources):
        share = sequences // len(sources) + (number < sequences % len(sources))
        choice = chat_template if source.chat_template is None else source.chat_template
        text_of = RowText(source, tokenizer, choice, say)
        for name, tokens in _windows_of(source, cutter, share, (seed, number), text_of):
            rows.append(tokens)
            document.append(documents.setdefault(name, len(documents)))
            domain.append(domains.index(source.label))
    tokens = np.stack(rows)
    found = Windows(
        tokens, np.ones_like(tokens, bool), np.array(document), np.array(domain), tuple(documents), domains
    )
    _tell_repeats(found, say)
    return found


def _tell_repeats(windows: Windows, say: Callable[[str], None]) -> None:
    """Says it where windows hold the same text: they count as if they were several."""
    _, first = np.unique(windows.tokens, axis=0, return_index=True)
    if len(first) < len(windows):
        again = min(set(range(len(windows))) - set(first.tolist()))
        name = windows.documents[windows.document[again]]
        count = f"{len(windows) - len(first)} of {len(windows)} windows"
        say(
            f"data: {count} hold the same text as another one (the first in {name}); does a text stand in two places?"
        )


def _windows_of(
    source: Source,
    cutter: Cutter,
    share: int,
    seed: tuple[int, int],
    text_of: RowText,
) -> list[Window]:
    """The windows of one source."""
    try:
        with opened(source, text_of) as reader:
            found = sample(reader, cutter, share, seed, text_of.again)
    except TooFewError as few:
        raise ExciseError(f"{text_of.what}: {_shortage(few.found, share, cutter, text_of)}") from None
    text_of.tell()
    _check_content(text_of.what, found, cutter, text_of.say)
    return found


def _shortage(found: int, wanted: int, cutter: Cutter, text_of: RowText) -> str:
    length = cutter.length
    if found:
        asked = f"{wanted} windows of {length} tokens asked, the text has {found}"
        return f"{asked}; lower sequences or length, or add text"
    if text_of.seen and text_of.seen == text_of.blank:
        return f"there is no text, its {text_of.seen:,} rows are null or empty; name another field"
    if not cutter.tokens:
        return "there is no text; add some"
    has = f"the text ({cutter.tokens:,} tokens)"
    return f"{has} is shorter than one window of {length} tokens; lower length or add text"


def _check_content(what: str, windows: list[Window], cutter: Cutter, say: Callable[[str], None]) -> None:
    """A window of special tokens alone is no text: all of them are refused, some are said."""
    special = set(cutter.tokenizer.all_special_ids)
    first = cutter.length - cutter.room  # behind the token for the beginning
    inside = [(name, set(tokens[first:].tolist())) for name, tokens in windows]
    hollow = [(name, body) for name, body in inside if body <= special]
    if not hollow:
        return
    name, body = hollow[0]
    tokens = cutter.tokenizer.convert_ids_to_tokens(sorted(body))
    kind = f"the special token {tokens[0]}" if len(tokens) == 1 else f"special tokens ({', '.join(tokens)})"
    holds = f"{len(hollow)} of {len(windows)} windows hold nothing but {kind} (the first in {name})"
    if len(hollow) == len(windows):
        raise ExciseError(f"{what}: {holds}; is this the tokenizer of the model, and the right text?")
    say(f"{what}: {holds}")


def consecutive(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    sequences: int = 0,
    bos: Bos = Bos.AUTO,
    say: Callable[[str], None] = tell,
) -> Windows:
    """A text file's tokens in windows of `length` from its start: the first `sequences`, 0 = all full ones.

    Every window is a document.
    """
    cutter, reader = Cutter(tokenizer, length, bos), PlainText(path)
    size = SMALL if reader.weight(SMALL) <= SMALL else BLOCK
    found = list(islice(cutter.windows(every(reader, size)), sequences or None))
    has = f"the text has {cutter.tokens:,} tokens" if cutter.tokens else "there is no text"
    if not found:
        few = f"{path}: {has}, less than a window of {length}"
        raise ExciseError(f"{few}; lower --window or take a longer text")
    if len(found) < sequences:
        has = f"{has}, {len(found)} full windows of {length}; {sequences} asked"
        raise ExciseError(f"{path}: {has}: lower --sequences or --window, or take a longer text")
    _check_content(str(path), found, cutter, say)
    tokens, rows = np.stack([row for _, row in found]), np.arange(len(found))
    documents = tuple(f"{path}#{row}" for row in rows)
    return Windows(tokens, np.ones_like(tokens, bool), rows, np.zeros_like(rows), documents, (path.stem,))


def overlap(calibration: Windows, validation: Windows) -> list[int]:
    """Validation windows of which more than half of the 16-token runs also stand in the calibration windows."""
    known = np.unique(_shingles(calibration.tokens))
    shared = np.isin(_shingles(validation.tokens), known).mean(axis=1)
    return [int(i) for i in np.flatnonzero(shared > 0.5)]


def check_disjoint(seen: Windows, validation: Windows, name: str = "calibration") -> None:
    """Raises ExciseError when validation text was seen before: nothing must be tested on what it was fitted to. name: of what saw it."""
    if repeated := overlap(seen, validation):
        first = validation.documents[validation.document[repeated[0]]]
        raise ExciseError(
            f"{name} and validation text overlap: {len(repeated)} of {len(validation)} validation windows "
            f"(the first in {first}) are {name} text too; use other files or another split for validate.data"
        )


def _shingles(tokens: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A 64-bit hash of every run of SHINGLE tokens [N, W − SHINGLE + 1]; whole windows where they are shorter."""
    size = min(SHINGLE, tokens.shape[1])
    view = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.uint64), size, axis=1)
    factors = np.random.default_rng(0).integers(1, 2**63, size, dtype=np.uint64) | np.uint64(1)
    mixed = (view + np.uint64(1)) * factors
    hashes: NDArray[np.uint64] = np.bitwise_xor.reduce(mixed ^ (mixed >> np.uint64(29)), axis=-1)
    return hashes
