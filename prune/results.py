"""Parts of JSON files that several commands write. The rest of a command's file is in its `result.py`."""

from typing import NotRequired, TypedDict

from criteria.text.windows import TextJson


class ModelJson(TypedDict):
    """Which model a result is of."""

    name: str  # as the recipe names it
    fingerprint: str  # of its configuration and every byte of its weights
    commit: NotRequired[str]  # of a model on the hub, the one that was read


class TextsJson(TypedDict):
    """What the ranking was made on, and what it was tested on."""

    calibration: TextJson  # text that the criteria saw
    validation: TextJson  # held-out text
