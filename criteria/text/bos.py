"""The token for the beginning of a text, with which windows start where the model wants it. No torch."""

from enum import StrEnum
from typing import Any

from experts.errors import ExciseError


class Bos(StrEnum):
    """Whether windows begin with it. auto: if the tokenizer begins one text with it."""

    AUTO, ALWAYS, NEVER = "auto", "always", "never"


def bos_of(tokenizer: Any, choice: Bos) -> int | None:
    """The token every window begins with; None = none."""
    token = tokenizer.bos_token_id
    if choice == Bos.ALWAYS and token is None:
        raise ExciseError("bos: always, but the tokenizer has no token for the beginning of a text; use auto")
    if choice == Bos.NEVER or token is None:
        return None
    return int(token) if choice == Bos.ALWAYS or tokenizer("x")["input_ids"][:1] == [token] else None
