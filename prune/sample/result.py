"""What `excise sample --json` prints."""

from typing import NotRequired, TypedDict


class SampleResult(TypedDict):
    """A file of samples that was written."""

    samples: str  # its path
    model: str  # fingerprint of the model that wrote them
    commit: NotRequired[str]  # of a model on the hub, the one that was read
    windows: int
    length: int  # tokens per window
    start: str  # random, bos or chat
    temperature: float
    seed: int
    seconds: float  # that this run took to draw them
