"""Text to token windows: sources, documents, seeded choice, content hash, overlap.

A source yields documents; a document at least one window long is cut into consecutive full windows, shorter ones of the same
source are joined (with the end token between them) until a window is full. Every window knows its document: the unit that
intervals are clustered by.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from criteria import stdlib
from criteria.sources import Source
from experts.errors import ExciseError

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
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()[:16]

    def select(self, rows: NDArray[np.int64]) -> "Windows":
        return Windows(self.tokens[rows], self.mask[rows], self.document[rows], self.domain[rows], self.documents, self.domains)


def read_windows(sources: Iterable[Source], tokenizer: PreTrainedTokenizerBase, length: int, sequences: int, seed: int) -> Windows:
    """`sequences` windows of `length` tokens, an equal share from every source, chosen with `seed`."""
    sources = list(sources)
    shares = [sequences // len(sources) + (i < sequences % len(sources)) for i in range(len(sources))]
    domains = tuple(dict.fromkeys(source.label for source in sources))
    rows, document, domain = [], [], []
    documents: dict[str, int] = {}  # one file may feed two sources: it stays one document
    for number, (source, share) in enumerate(zip(sources, shares, strict=True)):
        found = list(_cut(source, tokenizer, length))
        _check_supply(source, len(found), share, length)
        chosen = np.sort(np.random.default_rng([seed, number]).choice(len(found), share, replace=False))
        for i in chosen:
            name, tokens = found[i]
            rows.append(tokens)
            document.append(documents.setdefault(name, len(documents)))
            domain.append(domains.index(source.label))
    tokens = np.stack(rows)
    return Windows(tokens, np.ones_like(tokens, bool), np.array(document), np.array(domain), tuple(documents), domains)


def consecutive(path: Path, tokenizer: PreTrainedTokenizerBase, length: int, sequences: int = 0) -> Windows:
    """The file's tokens, no special ones added, in windows of `length` from its start: the first `sequences`, 0 = all full ones."""
    ids = np.array(tokenizer(_read(path), add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
    found = len(ids) // length
    if found == 0:
        raise ExciseError(f"{path}: the text has {len(ids):,} tokens, less than a window of {length}; lower --window or take a longer text")
    if found < sequences:
        has = f"the text has {len(ids):,} tokens, {found} full windows of {length}; {sequences} asked"
        raise ExciseError(f"{path}: {has}: lower --sequences or --window, or take a longer text")
    rows = np.arange(sequences or found)
    tokens = ids[: len(rows) * length].reshape(len(rows), length)
    return Windows(tokens, np.ones_like(tokens, bool), rows, np.zeros_like(rows), tuple(f"{path}#{row}" for row in rows), (path.stem,))


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


def _cut(source: Source, tokenizer: PreTrainedTokenizerBase, length: int) -> Iterator[tuple[str, NDArray[np.int64]]]:
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    pending: list[int] = []
    members: list[str] = []
    for name, text in _documents(source):
        # verbose=False: a document longer than the model's context is no mistake here, it is cut.
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= length:
            for start in range(0, len(ids) - length + 1, length):
                yield name, np.array(ids[start : start + length])
        else:
            pending += [*ids, *end]
            members.append(name)
            if len(pending) >= length:
                yield (members[0] if len(members) == 1 else f"{members[0]} … {members[-1]}"), np.array(pending[:length])
                pending, members = [], []


def _documents(source: Source) -> Iterator[tuple[str, str]]:
    if source.stdlib:
        yield from stdlib.documents(source.stdlib, source.split)  # type: ignore[arg-type]
    elif source.text:
        for path in source.text:
            yield from _split(str(path), _read(path), source.separator)
    elif source.jsonl:
        for path in source.jsonl:
            for number, line in enumerate(_read(path).split("\n"), 1):
                if line.strip():
                    yield f"{path}:{number}", _fields(f"{path}:{number}", _parse(f"{path}:{number}", line), source.field)
    else:
        yield from _dataset(source)


def _split(name: str, text: str, separator: str) -> Iterator[tuple[str, str]]:
    if not separator:
        yield name, text
        return
    starts = sorted({0, *(found.start() for found in re.finditer(separator, text, re.MULTILINE)), len(text)})
    for number, (start, end) in enumerate(itertools.pairwise(starts)):
        if text[start:end].strip():
            yield f"{name}#{number}", text[start:end]


def _dataset(source: Source) -> Iterator[tuple[str, str]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(source.dataset, source.config or None, split=source.split or "train", streaming=True).take(source.documents)
        for number, row in enumerate(rows):
            yield f"{source.dataset}#{number}", _fields(f"{source.dataset}#{number}", row, source.field)
    except (OSError, ValueError, RuntimeError) as error:
        raise ExciseError(f"data set {source.dataset}: cannot be read ({str(error).strip().splitlines()[0]})") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ExciseError(f"{path}: not UTF-8 text (byte {error.start}); convert it first") from error
    except OSError as error:
        raise ExciseError(f"{path}: {error.strerror}") from error


def _parse(where: str, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ExciseError(f"{where}: not a JSON line ({error})") from error


def _fields(where: str, row: Any, names: tuple[str, ...]) -> str:
    if not isinstance(row, Mapping) or (missing := [name for name in names if not isinstance(row.get(name), str)]):
        have = sorted(row) if isinstance(row, Mapping) else type(row).__name__
        raise ExciseError(f"{where}: no text in field {missing[0] if isinstance(row, Mapping) else names[0]!r}; it has {have}")
    return "\n".join(row[name] for name in names)


def _check_supply(source: Source, found: int, wanted: int, length: int) -> None:
    if found == 0:
        raise ExciseError(f"data ({source.label}): the text is shorter than one window of {length} tokens; lower length or add text")
    if found < wanted:
        raise ExciseError(
            f"data ({source.label}): {wanted} windows of {length} tokens asked, the text has {found}; "
            "lower sequences or length, or add text"
        )
