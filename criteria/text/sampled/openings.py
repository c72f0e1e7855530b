"""The first tokens of windows that a model writes itself."""

import hashlib
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from criteria.text.bos import Bos, bos_of
from criteria.text.chat_template import ChatTemplate
from criteria.text.readers.pieces import RowError
from criteria.text.sampled.settings import Start
from experts.arrays import Ids
from experts.errors import ExciseError

MARK = "\N{SYMBOL FOR START OF TEXT}excise\N{SYMBOL FOR END OF TEXT}"  # stands where the user speaks


@dataclass(frozen=True)
class Opening:
    """What every window begins with.

    Attributes:
        first: ids that all windows have in common [P], perhaps none
        drawn: ids of which one follows, each as likely; empty where none does
    """

    first: Ids
    drawn: Ids

    @property
    def length(self) -> int:
        """Tokens before the model writes."""
        return len(self.first) + (len(self.drawn) > 0)

    @property
    def identity(self) -> str:
        """Of the tokens that a window may begin with."""
        content = self.first.tobytes() + b"|" + self.drawn.tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def ids(self, rng: np.random.Generator) -> Ids:
        """The first tokens of a window [length]."""
        if not len(self.drawn):
            return self.first
        return np.append(self.first, self.drawn[rng.integers(len(self.drawn))])


def opening_of(
    tokenizer: PreTrainedTokenizerBase, start: Start, bos: Bos = Bos.AUTO, vocabulary: int | None = None
) -> Opening:
    """Return what windows begin with.

    Args:
        tokenizer: of the model
        start: random, bos or chat
        bos: whether windows of start `random` have the token for the beginning in front
        vocabulary: ids that the model has; none = as many as the tokenizer

    Raises:
        ExciseError: the tokenizer has no such beginning.
    """
    if start == Start.CHAT:
        return Opening(_chat(tokenizer), _ids([]))
    if start == Start.BOS:
        return Opening(_ids([_beginning(tokenizer)]), _ids([]))
    first = bos_of(tokenizer, bos)
    drawn = _plain_tokens(tokenizer, vocabulary)
    return Opening(_ids([] if first is None else [first]), drawn)


def _plain_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: int | None) -> Ids:
    """Ids of all tokens that stand for text, ascending."""
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
    most = vocabulary or len(tokenizer)
    numbers = sorted(set(tokenizer.get_vocab().values()) - special)
    plain = [number for number in numbers if number < most]
    if not plain:
        raise ExciseError("sampled: the tokenizer has no token but special ones; take start: bos")
    return _ids(plain)


def _beginning(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token a text begins behind: its own, or the end of the text before it."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ExciseError(
        "sampled: start: bos, but the tokenizer has no token for the beginning or end of a text; "
        "take start: random"
    )


def _chat(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The chat template up to what the user says."""
    if not tokenizer.chat_template:
        raise ExciseError(
            "sampled: start: chat, but the tokenizer has no chat template; take start: random or bos"
        )
    template = ChatTemplate(tokenizer, True, "sampled: start: chat")
    try:
        before, found, _ = template.render([{"role": "user", "content": MARK}]).partition(MARK)
    except RowError as error:
        raise ExciseError(f"sampled: start: chat: {error}") from error
    ids = tokenizer(before, add_special_tokens=False)["input_ids"] if found else []
    if not ids:
        raise ExciseError(
            "sampled: start: chat, but the chat template has nothing before what the user says; "
            "take start: random or bos"
        )
    return _ids(ids)


def _ids(numbers: list[int]) -> Ids:
    return np.array(numbers, dtype=np.int64)
