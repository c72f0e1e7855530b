"""Parts of JSON files that several commands write. The rest of a command's file is in its `result.py`."""

from typing import NotRequired, TypedDict


class ModelJson(TypedDict):
    """Which model a result is of."""

    name: str  # as the recipe names it
    fingerprint: str  # of its configuration and every byte of its weights
    commit: NotRequired[str]  # of a model on the hub, the one that was read


class TextJson(TypedDict):
    """The windows of one of a recipe's texts."""

    windows: int  # N
    length: int  # tokens per window, W
    documents: int  # how many the windows were cut from
    domains: list[str]  # labels of the sources
    hash: str  # identity of the tokens


class TextsJson(TypedDict):
    """What the ranking was made on, and what it was tested on."""

    calibration: TextJson  # text that the criteria saw
    validation: TextJson  # held-out text
