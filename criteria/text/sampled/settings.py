"""How a model is asked for text of its own, as a recipe writes it (docs/methods.md 10)."""

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import NotRequired, TypedDict

from pydantic import Field, model_validator

from experts.settings import Settings

DOMAIN = "sampled"  # of windows that a model wrote
# Windows that are drawn together, always so many: sums of another batch are rounded otherwise, and in
# bfloat16 that is enough for another token.
GROUP = 32


class Start(StrEnum):
    """What a window begins with; the model writes the rest.

    Attributes:
        RANDOM: a token of the vocabulary, every one that is not special equally likely
        BOS: the token for the beginning of a text, or the end token where there is none
        CHAT: the chat template up to what the user says
    """

    RANDOM = "random"
    BOS = "bos"
    CHAT = "chat"


class SampledJson(TypedDict):
    """What a result says of windows that a model wrote itself."""

    windows: int
    start: str  # random, bos or chat
    temperature: float
    seed: int
    model: str  # fingerprint of the model that wrote them
    file: NotRequired[str]  # name of the file they were read from


class Sampled(Settings):
    """Text that the unpruned model writes: drawn at the start of a run, or read from a file of samples."""

    windows: int | None = Field(
        default=None, gt=0, description="how many of the block's `sequences`; none = its share by `weight`"
    )
    temperature: float = Field(
        default=1.0, gt=0, le=10, description="of the softmax; 1 = the model's own probabilities"
    )
    start: Start = Field(
        default=Start.RANDOM,
        description="random, bos, chat: a token of the vocabulary, the token for the beginning, "
        "or the chat template up to what the user says",
    )
    seed: int = Field(default=0, ge=0, description="seed of the windows, beside the block's own")
    file: Path | None = Field(
        default=None, description="samples that `excise sample` wrote; none = the model writes them now"
    )

    @model_validator(mode="after")
    def _check(self) -> "Sampled":
        """A file says itself how it was drawn."""
        if self.file is None:
            return self
        for key in ("temperature", "start", "seed"):
            if key in self.model_fields_set:
                raise ValueError(f"{key} belongs to text that is drawn now; the file was drawn with its own")
        return self

    @property
    def words(self) -> str:
        """The settings, for notes and forecasts."""
        if self.file is not None:
            return f"samples of the model itself, {self.file}"
        return f"written by the model itself: start {self.start}, temperature {self.temperature:g}"


def in_words(sampled: Iterable[SampledJson]) -> str:
    """Say of which windows a model was the author, behind what is said of a text; empty where of none."""
    said = [
        f"; {each['windows']} of the windows were sampled from the model itself (start {each['start']}, "
        f"temperature {each['temperature']:g}, seed {each['seed']}, fingerprint {each['model']})"
        for each in sampled
    ]
    return "".join(said)


def not_here(model: str, why: str) -> str:
    """The refusal of a model that cannot write because it is streamed.

    Args:
        model: its name
        why: it is streamed
    """
    return (
        f"{model}: to write text of its own (sampled) the whole model has to be in memory, and it is "
        f"streamed ({why}); `excise sample` on a machine where it fits writes a file, "
        "and sampled: {file: …} reads it here"
    )
