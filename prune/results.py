"""Parts of the JSON files that several commands write. Each command has its own file format in its `result.py`."""

from typing import Any, NotRequired, TypedDict

# Written by `validate`.
Cost = dict[str, Any]
Evidence = dict[str, Any]
Difference = dict[str, Any]
Cell = dict[str, Any]
Recovery = dict[str, Any]
Lead = dict[str, Any]


class ModelIdentity(TypedDict):
    """Which model a result is of.

    Attributes:
        name: as the recipe names it.
        fingerprint: of its configuration and every byte of its weights.
        commit: of a model on the hub, the one that was read.
    """

    name: str
    fingerprint: str
    commit: NotRequired[str]


class TextSummary(TypedDict):
    """The windows of one of a recipe's texts.

    Attributes:
        windows: N.
        length: tokens per window, W.
        documents: how many the windows were cut from.
        domains: labels of the sources.
        hash: identity of the tokens.
    """

    windows: int
    length: int
    documents: int
    domains: list[str]
    hash: str


class Texts(TypedDict):
    """What the ranking was made on, and what it was tested on.

    Attributes:
        calibration: text that the criteria saw.
        validation: held-out text.
    """

    calibration: TextSummary
    validation: TextSummary


class Check(TypedDict):
    """One check of the instrument; a result exists only where all have passed.

    Attributes:
        name: what was compared.
        passed: true.
        evidence: the numbers.
    """

    name: str
    passed: bool
    evidence: str
