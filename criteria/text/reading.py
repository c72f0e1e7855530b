"""Text to token windows: from the sources of a recipe, by a seed, or from the start of one file.

A document of at least one window is cut into consecutive full windows. Shorter documents of the same source
are joined, with the end token between them, until a window is full. Every window knows its document, because
intervals are clustered by documents. Where the tokenizer begins a text with a token of its own, every window
begins with it; what follows it counts like any other position.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from criteria.text.bos import Bos
from criteria.text.checks import check_content, note_repeats, shortage
from criteria.text.cutting import Cutter, Window
from criteria.text.readers.pieces import BLOCK, SMALL
from criteria.text.readers.plain import PlainText
from criteria.text.readers_of_sources import source_reader
from criteria.text.rows import RowText
from criteria.text.sampled.settings import SampledJson
from criteria.text.sampling import Sampler, TooFewError, all_pieces
from criteria.text.shares import shares
from criteria.text.sources import Source
from criteria.text.windows import Windows
from experts.arrays import Ids
from experts.errors import ExciseError
from experts.notes import tell


class SampledText(Protocol):
    """Returns windows of a sampled source [count, W], and how they were drawn."""

    def __call__(self, source: Source, count: int, /) -> tuple[Ids, SampledJson]: ...


def no_sampled_text(source: Source, _count: int) -> tuple[Ids, SampledJson]:
    """Where there is no model that could have written it."""
    raise ExciseError(f"data ({source.label}): text of the model itself (sampled) cannot be used here")


def read_windows(
    sources: Iterable[Source],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    sequences: int,
    seed: int,
    bos: Bos = Bos.AUTO,
    chat_template: bool | str | None = None,
    say: Callable[[str], None] = tell,
    sampled: SampledText = no_sampled_text,
) -> Windows:
    """Cut windows from sources, from each its share.

    Args:
        sources: where the text comes from
        tokenizer: cuts the text
        length: W, tokens per window
        sequences: N, number of windows
        seed: decides which windows are taken
        bos: whether windows begin with the token for the beginning of a text
        chat_template: of sources that do not name one
        say: takes notes on what was read
        sampled: gives the windows of sampled sources

    Raises:
        ExciseError: a source is missing, unreadable or too short.
    """
    sources = list(sources)
    counts = shares(sources, sequences)
    cutter = Cutter(tokenizer, length, bos)
    taken: list[list[Window]] = [[] for _ in sources]
    drawn: list[SampledJson] = []
    for number in sorted(range(len(sources)), key=lambda number: sources[number].drawn):
        # What has to be drawn comes last: a file that is missing is refused before.
        source, share = sources[number], counts[number]
        if source.sampled:
            taken[number], how = _sampled(source, share, sampled)
            drawn.append(how)
            continue
        template = chat_template if source.chat_template is None else source.chat_template
        row_text = RowText(source, tokenizer, template, say)
        taken[number] = _windows_of(source, cutter, share, (seed, number), row_text)
    windows = _assemble(sources, taken, drawn)
    note_repeats(windows, say)
    return windows


def _sampled(source: Source, share: int, sampled: SampledText) -> tuple[list[Window], SampledJson]:
    """The windows of a sampled source, each a document, and how they were drawn."""
    tokens, how = sampled(source, share)
    name = f"{source.label}: start {how['start']}, temperature {how['temperature']:g}, seed {how['seed']}"
    return [Window(f"{name} #{row}", ids) for row, ids in enumerate(tokens)], how


def _windows_of(
    source: Source,
    cutter: Cutter,
    share: int,
    seed: tuple[int, int],
    row_text: RowText,
) -> list[Window]:
    """The windows of one source."""
    try:
        with source_reader(source, row_text) as reader:
            windows = Sampler(reader, cutter, share, seed, row_text.again).sample()
    except TooFewError as few:
        raise ExciseError(f"{row_text.what}: {shortage(few.available, share, cutter, row_text)}") from None
    row_text.tell()
    check_content(row_text.what, windows, cutter, row_text.say)
    return windows


def _assemble(sources: list[Source], taken: list[list[Window]], drawn: Sequence[SampledJson] = ()) -> Windows:
    """The windows of all sources, in their order. A file that feeds two sources stays one document."""
    domains = tuple(dict.fromkeys(source.label for source in sources))
    rows, document, domain = [], [], []
    documents: dict[str, int] = {}
    for source, windows in zip(sources, taken, strict=True):
        for name, tokens in windows:
            rows.append(tokens)
            document.append(documents.setdefault(name, len(documents)))
            domain.append(domains.index(source.label))
    tokens = np.stack(rows)
    mask = np.ones_like(tokens, bool)
    rows_of = np.array(document), np.array(domain)
    return Windows(tokens, mask, *rows_of, tuple(documents), domains, tuple(drawn))


def consecutive(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    sequences: int = 0,
    bos: Bos = Bos.AUTO,
    say: Callable[[str], None] = tell,
) -> Windows:
    """Cut a text file into windows from its start; every window is a document.

    Args:
        path: a file of plain text
        tokenizer: cuts the text
        length: W, tokens per window
        sequences: how many of the first windows; 0 = all full ones
        bos: whether windows begin with the token for the beginning of a text
        say: takes notes on what was read

    Raises:
        ExciseError: the file is unreadable or too short.
    """
    cutter, reader = Cutter(tokenizer, length, bos), PlainText(path)
    cell_size = SMALL if reader.weight(SMALL) <= SMALL else BLOCK
    windows = list(islice(cutter.windows(all_pieces(reader, cell_size)), sequences or None))
    _check_number(path, windows, sequences, cutter)
    check_content(str(path), windows, cutter, say)
    tokens = np.stack([window.tokens for window in windows])
    mask = np.ones_like(tokens, bool)
    rows = np.arange(len(windows))
    documents = tuple(f"{path}#{row}" for row in rows)
    return Windows(tokens, mask, rows, np.zeros_like(rows), documents, (path.stem,))


def _check_number(path: Path, windows: list[Window], sequences: int, cutter: Cutter) -> None:
    """Refuse a file without a full window, or with fewer than were asked for."""
    has = f"the text has {cutter.tokens:,} tokens" if cutter.tokens else "there is no text"
    if not windows:
        few = f"{path}: {has}, less than a window of {cutter.length}"
        raise ExciseError(f"{few}; lower --window or take a longer text")
    if len(windows) < sequences:
        has = f"{has}, {len(windows)} full windows of {cutter.length}; {sequences} asked"
        raise ExciseError(f"{path}: {has}: lower --sequences or --window, or take a longer text")
