"""Text for one model: windows that fit its positions and its vocabulary."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from criteria.text.bos import Bos
from criteria.text.context_length import check_vocabulary, context_note
from criteria.text.reading import read_windows
from criteria.text.sources import Source
from criteria.text.windows import Windows
from experts.errors import ExciseError
from experts.model import Model
from experts.notes import tell


def windows(
    model: Model,
    source: str | Path | Source | Sequence[Source] | None = None,
    *,
    sequences: int = 128,
    length: int = 512,
    seed: int = 0,
    bos: Bos | str = Bos.AUTO,
    chat_template: bool | str | None = None,
    **keys: Any,
) -> Windows:
    """Cut token windows from a text.

    Say where the text comes from with a path, with the keys of a recipe's `data` block, or with several
    `Source`s, which get an equal share of the windows. The same seed takes the same windows on every machine.

    Args:
        model: its tokenizer cuts the text
        source: a file or folder of text, a `Source`, or several
        sequences: N, number of windows
        length: W, tokens per window
        seed: of the choice of windows
        bos: begin windows with the token for the beginning of a text: auto (if the tokenizer does), always,
            never
        chat_template: for conversations: true = the tokenizer's own template, or the name of one
        **keys: instead of `source`: text, jsonl, dataset or stdlib, and what belongs to it (split, field,
            separator, config, documents, domain), as recipes/README.md documents them

    Returns:
        Windows [N, W].

    Raises:
        ExciseError: the text is missing, unreadable or too short, or the model has no such positions.

    Example:
        >>> import criteria, experts
        >>> model = experts.load("demo")
        >>> text = criteria.windows(model, stdlib="prose", split="test", sequences=4, length=64)
        >>> text.tokens.shape
        (4, 64)
    """
    return read_for(
        model,
        _sources(source, keys),
        sequences=sequences,
        length=length,
        seed=seed,
        bos=_bos(bos),
        chat_template=chat_template,
    )


def read_for(
    model: Model,
    sources: Sequence[Source],
    *,
    sequences: int,
    length: int,
    seed: int,
    bos: Bos = Bos.AUTO,
    chat_template: bool | str | None = None,
    say: Callable[[str], None] = tell,
) -> Windows:
    """The same from sources alone. say: takes notes on what was read."""
    checkpoint = model.layout.checkpoint
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    if note := context_note(length, checkpoint.config, shapes):
        say(note)
    tokenizer = model.new_tokenizer()
    cut = read_windows(
        sources,
        tokenizer,
        length=length,
        sequences=sequences,
        seed=seed,
        bos=bos,
        chat_template=chat_template,
        say=say,
    )
    check_vocabulary(int(cut.tokens.max()), checkpoint.config)
    return cut


def _sources(source: str | Path | Source | Sequence[Source] | None, keys: dict[str, Any]) -> list[Source]:
    if source is None:
        return [_source(keys)]
    if keys:
        raise ExciseError(f"give a source or keys of one, not both ({', '.join(keys)})")
    if isinstance(source, Source):
        return [source]
    return [_source({"text": source})] if isinstance(source, str | Path) else list(source)


def _source(keys: dict[str, Any]) -> Source:
    try:
        return Source.model_validate(keys)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise ExciseError(f"source: {f'{where}: ' if where else ''}{message}") from error


def _bos(bos: Bos | str) -> Bos:
    try:
        return Bos(bos)
    except ValueError:
        raise ExciseError(f"bos {bos!r}: expected one of {', '.join(Bos)}") from None
