"""Text for one model: windows that fit its positions and its vocabulary."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from criteria.text.bos import Bos
from criteria.text.context_length import check_vocabulary, context_note
from criteria.text.disjoint import without_repeats
from criteria.text.reading import read_windows
from criteria.text.sampled.from_model import SampledFromModel
from criteria.text.sampled.own_text import SampleStore
from criteria.text.sampled.settings import Sampled, Start
from criteria.text.sources import Source
from criteria.text.windows import Windows, check_windows
from experts.arguments import check_count, check_kind, choice_of
from experts.errors import ExciseError
from experts.model import Model, check_model
from experts.notes import tell
from experts.settings import first_problem

EXPECTED = "a path, a criteria.Source, or several of them"
NOWHERE = SampleStore()


def windows(
    model: Model,
    source: str | Path | Source | Sequence[str | Path | Source] | None = None,
    *,
    sequences: int = 128,
    length: int = 512,
    seed: int = 0,
    bos: Bos | str = Bos.AUTO,
    chat_template: bool | str | None = None,
    apart_from: Windows | None = None,
    **keys: Any,
) -> Windows:
    """Cut token windows from a text.

    Say where the text comes from with a path, with the keys of a recipe's `data` block, or with several
    paths or `Source`s, which share the windows by their weights. The same seed takes the same windows on
    every machine.

    Args:
        model: its tokenizer cuts the text
        source: a file or folder of text, a `Source`, or several of them
        sequences: N, number of windows
        length: W, tokens per window
        seed: of the choice of windows
        bos: begin windows with the token for the beginning of a text: auto (if the tokenizer does), always,
            never
        chat_template: for conversations: true = the tokenizer's own template, or the name of one
        apart_from: held-out windows; windows that hold text of those which they repeat are left out
        **keys: instead of `source`: text, jsonl, dataset, stdlib or sampled, and what belongs to it (split,
            field, separator, config, documents, domain), as recipes/README.md documents them

    Returns:
        Windows [N, W]; fewer where some are left out.

    Raises:
        ExciseError: the text is missing, unreadable or too short, or the model has no such positions.

    Example:
        >>> import criteria, experts
        >>> model = experts.load("demo")
        >>> text = criteria.windows(model, stdlib="prose", split="test", sequences=4, length=64)
        >>> text.tokens.shape
        (4, 64)
    """
    check_model(model)
    sources = _sources(source, keys)
    check_count("sequences", sequences)
    check_count("length", length, 2)
    check_count("seed", seed, 0)
    if apart_from is not None:
        check_windows("apart_from", apart_from)
    found = read_for(
        model,
        sources,
        sequences=sequences,
        length=length,
        seed=seed,
        bos=choice_of("bos", bos, Bos),
        chat_template=chat_template,
    )
    return found if apart_from is None else without_repeats(found, apart_from)


def sampled(
    model: Model,
    *,
    windows: int = 64,
    length: int = 256,
    temperature: float = 1.0,
    start: Start | str = Start.RANDOM,
    seed: int = 0,
    bos: Bos | str = Bos.AUTO,
) -> Windows:
    """Let a model write windows of text: what it was trained on, as far as it learnt it, and no data needed.

    Every window begins with some first tokens, and the others are drawn one by one from the model's own
    probabilities softmax(logits / temperature), nothing cut off. The end token does not end a window. A
    window depends on seed and number alone: the first 64 of 192 windows are the 64 windows of another call
    (docs/methods.md 10).

    For calibration and refit; not for tests: a model judged by its own text says nothing of real text.

    Args:
        model: it writes; all its weights have to be in memory
        windows: N, number of windows
        length: W, tokens per window
        temperature: logits are divided by it
        start: random (a token of the vocabulary that is not special), bos (the token for the beginning, or
            the end token), chat (the chat template up to what the user says)
        seed: of the windows
        bos: begin windows of start `random` with the token for the beginning of a text: auto (if the
            tokenizer does), always, never

    Returns:
        Windows [N, W] of domain `sampled`, each a document of its own.

    Raises:
        ExciseError: the model is streamed, has no such beginning, or its generation loop cannot be run.

    Example:
        >>> import criteria, experts
        >>> model = experts.load("demo")
        >>> text = criteria.sampled(model, windows=2, length=16)
        >>> text.tokens.shape, text.domains
        ((2, 16), ('sampled',))
    """
    check_model(model)
    check_count("windows", windows)
    check_count("length", length, 2)
    check_count("seed", seed, 0)
    how = {"temperature": temperature, "start": choice_of("start", start, Start), "seed": seed}
    try:
        source = Source(sampled=Sampled.model_validate(how))
    except ValidationError as error:
        raise ExciseError(f"sampled: {first_problem(error, Sampled)}") from error
    return read_for(model, [source], sequences=windows, length=length, seed=0, bos=choice_of("bos", bos, Bos))


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
    store: SampleStore = NOWHERE,
) -> Windows:
    """The same as `windows` from sources alone.

    Args:
        model: as there
        sources: as there
        sequences: as there
        length: as there
        seed: as there
        bos: as there
        chat_template: as there
        say: takes notes on what was read
        store: where windows are kept that the model writes itself
    """
    check_length(model, length, say)
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
        sampled=SampledFromModel(model, length, seed, bos, store, say),
    )
    check_vocabulary(int(cut.tokens.max()), model.layout.checkpoint.config)
    return cut


def check_length(model: Model, length: int, say: Callable[[str], None] = tell) -> None:
    """Compare the length of windows with the positions of a model, before any are cut or drawn.

    Args:
        model: reads them, or writes them itself
        length: W, tokens per window
        say: takes a note where windows are longer than the model was made for

    Raises:
        ExciseError: the model has no embeddings for so many positions.
    """
    checkpoint = model.layout.checkpoint
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    if note := context_note(length, checkpoint.config, shapes):
        say(note)


def _sources(
    source: str | Path | Source | Sequence[str | Path | Source] | None, keys: dict[str, Any]
) -> list[Source]:
    if source is None:
        return [_source(keys)]
    if keys:
        raise ExciseError(f"give a source or keys of one, not both ({', '.join(keys)})")
    several = [source] if isinstance(source, str | Path | Source) else source
    check_kind("source", several, Collection, EXPECTED)
    return [_source_of(one) for one in several]


def _source_of(source: object) -> Source:
    if isinstance(source, Source):
        return source
    check_kind("source", source, (str, Path), EXPECTED)
    return _source({"text": source})


def _source(keys: dict[str, Any]) -> Source:
    try:
        return Source.model_validate(keys)
    except ValidationError as error:
        raise ExciseError(f"source: {first_problem(error, Source)}") from error
