"""A file of windows that a model wrote: JSON lines with text and exact tokens, checked when they are used.

Every row says how it was drawn, so that a part of a file is a file too, and other programs can read `text`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from transformers import PreTrainedTokenizerBase

from criteria.text.sampled.settings import SampledJson
from experts.arrays import Ids
from experts.disk.configuration import positive_int, text_config
from experts.errors import ExciseError
from experts.files import replacing
from experts.model import Model

AGAIN = "write it again with `excise sample`"


class HowJson(TypedDict):
    """How a row was drawn; `window` apart, all rows of a file have the same."""

    model: str  # fingerprint
    vocabulary: str  # hash of all tokens and their ids
    start: str
    temperature: float
    seed: int
    window: int  # its number


class RowJson(TypedDict):
    """A line of the file."""

    text: str
    tokens: list[int]
    sampled: HowJson


def write_samples(path: Path, tokens: Ids, model: Model, how: SampledJson) -> None:
    """Write windows into a file that appears whole or not at all.

    Args:
        path: the file
        tokens: of the windows [N, W]
        model: that wrote them
        how: they were drawn
    """
    tokenizer = model.tokenizer
    name = vocabulary_of(tokenizer)
    with replacing(path) as fresh, fresh.open("w", encoding="utf-8") as file:
        for number, window in enumerate(tokens.tolist()):
            row: RowJson = {
                "text": str(tokenizer.decode(window, clean_up_tokenization_spaces=False)),
                "tokens": window,
                "sampled": {
                    "model": how["model"],
                    "vocabulary": name,
                    "start": how["start"],
                    "temperature": how["temperature"],
                    "seed": how["seed"],
                    "window": number,
                },
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_samples(
    path: Path, model: Model, *, length: int, count: int, seed: int, say: Callable[[str], None]
) -> tuple[Ids, SampledJson]:
    """Take windows from a file.

    Args:
        path: the file
        model: that will read them; it, or another one of the same vocabulary, wrote them
        length: W, tokens per window; longer ones are cut
        count: N, how many
        seed: 0 takes the first N, 1 the next N, and so on, round the end of the file
        say: takes a note where another model wrote them

    Returns:
        Token ids [N, W], and how they were drawn.

    Raises:
        ExciseError: the file is no such file, of another vocabulary, has ids outside of it, or is too short.
    """
    rows = list(_rows(path))
    how = _common(path, [row["sampled"] for row in rows])
    _check_model(path, model, how, say)
    _check_ids(path, [row["tokens"] for row in rows], model.layout.checkpoint.config)
    shortest = min(len(row["tokens"]) for row in rows)
    if shortest < length:
        raise ExciseError(
            f"{path}: has windows of {shortest} tokens, {length} asked; lower length, or {AGAIN} --length"
        )
    if len(rows) < count:
        raise ExciseError(
            f"{path}: has {len(rows)} windows, {count} asked; lower sequences, or {AGAIN} --windows"
        )
    chosen = (seed * count + np.arange(count)) % len(rows)
    tokens = np.array([rows[number]["tokens"][:length] for number in chosen], dtype=np.int64)
    drawn: SampledJson = {
        "windows": count,
        "start": how["start"],
        "temperature": how["temperature"],
        "seed": how["seed"],
        "model": how["model"],
        "file": path.name,
    }
    return tokens, drawn


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identity of a tokenizer's tokens and their ids."""
    tokens = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(tokens.encode()).hexdigest()[:16]


def _rows(path: Path) -> Iterator[RowJson]:
    """The rows of a file. Raises ExciseError that names the line which is none."""
    try:
        with path.open(encoding="utf-8") as file:
            found = False
            for number, line in enumerate(file, 1):
                found = True
                yield _row(f"{path}:{number}", line)
    except UnicodeDecodeError as error:
        raise ExciseError(f"{path}: not UTF-8 text (byte {error.start}); {AGAIN}") from error
    except OSError as error:
        raise ExciseError(f"{path}: {error.strerror or error}") from error
    if not found:
        raise ExciseError(f"{path}: is empty; {AGAIN}")


def _row(place: str, line: str) -> RowJson:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not _is_row(row):
        raise ExciseError(
            f"{place}: no row of `excise sample` (text, tokens, sampled); {AGAIN}, or give the file as jsonl"
        )
    found: RowJson = row
    return found


def _is_row(row: Any) -> bool:
    """Whether it has tokens, and says how they were drawn."""
    if not isinstance(row, dict) or not isinstance(row.get("sampled"), dict):
        return False
    tokens, how = row.get("tokens"), row["sampled"]
    kinds: dict[str, Any] = {
        "model": str,
        "vocabulary": str,
        "start": str,
        "temperature": (int, float),
        "seed": int,
    }
    return (
        isinstance(tokens, list)
        and all(type(token) is int and token >= 0 for token in tokens)
        and all(isinstance(how.get(key), kind) for key, kind in kinds.items())
    )


def _common(path: Path, all_of_them: list[HowJson]) -> HowJson:
    """How all rows were drawn."""
    first: Any = all_of_them[0]
    how: Any
    for number, how in enumerate(all_of_them, 1):
        for key in ("model", "vocabulary", "start", "temperature", "seed"):
            if how[key] != first[key]:
                raise ExciseError(
                    f"{path}: row 1 was drawn with {key} {first[key]}, "
                    f"row {number} with {how[key]}; "
                    "give a file of each, as sources of their own"
                )
    common: HowJson = first
    return common


def _check_model(path: Path, model: Model, how: HowJson, say: Callable[[str], None]) -> None:
    """Refuse tokens of another vocabulary; note those of another model."""
    if how["model"] == model.fingerprint:
        return
    if how["vocabulary"] != vocabulary_of(model.tokenizer):
        raise ExciseError(
            f"{path}: a model of another vocabulary wrote it (fingerprint {how['model']}), "
            f"its tokens mean something else to {model.name}; {AGAIN} from this model"
        )
    say(f"{path}: another model of the same vocabulary wrote it (fingerprint {how['model']})")


def _check_ids(path: Path, windows: Sequence[Sequence[int]], config: Mapping[str, Any]) -> None:
    """Refuse ids that have no embedding: a file that was changed after it was written."""
    size = positive_int(text_config(config), "vocab_size")
    if size is None:
        return
    for number, tokens in enumerate(windows, 1):
        if tokens and max(tokens) >= size:
            raise ExciseError(
                f"{path}: row {number} has token {max(tokens)}, and the model's vocabulary has {size} "
                f"(config.json, vocab_size); {AGAIN}"
            )
