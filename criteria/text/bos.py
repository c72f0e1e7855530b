"""The token for the beginning of a text, with which windows start where the model expects it."""

from enum import StrEnum
from typing import Any

from experts.errors import ExciseError


class Bos(StrEnum):
    """Whether windows begin with the token for the beginning of a text.

    Attributes:
        AUTO: if the tokenizer begins a text with it
        ALWAYS: yes, and the tokenizer must have one
        NEVER: no
    """

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def bos_of(tokenizer: Any, choice: Bos) -> int | None:
    """Return the id of the token that every window begins with; None for none.

    Raises:
        ExciseError: `choice` is ALWAYS and the tokenizer has no such token.
    """
    token = tokenizer.bos_token_id
    if choice == Bos.ALWAYS and token is None:
        raise ExciseError("bos: always, but the tokenizer has no token for the beginning of a text; use auto")
    if choice == Bos.NEVER or token is None:
        return None
    if choice == Bos.ALWAYS or _begins_with(tokenizer, token):
        return int(token)
    return None


def _begins_with(tokenizer: Any, token: int) -> bool:
    """Whether the tokenizer by itself begins a text with this token."""
    first: list[int] = tokenizer("x")["input_ids"][:1]
    return first == [token]
