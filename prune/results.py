"""Parts of JSON files that several commands write. The rest of a command's file is in its `result.py`."""

from typing import Any, NotRequired, TypedDict

from criteria.text.windows import TextJson

# Written by `validate`.
CostJson = dict[str, Any]
EvidenceJson = dict[str, Any]
DifferenceJson = dict[str, Any]
CellJson = dict[str, Any]
RecoveredCostJson = dict[str, Any]
LeadJson = dict[str, Any]


class ModelJson(TypedDict):
    """Which model a result is of."""

    name: str  # as the recipe names it
    fingerprint: str  # of its configuration and every byte of its weights
    commit: NotRequired[str]  # of a model on the hub, the one that was read


class TextsJson(TypedDict):
    """What the ranking was made on, and what it was tested on."""

    calibration: TextJson  # text that the criteria saw
    validation: TextJson  # held-out text


class CheckJson(TypedDict):
    """One check of the instrument; a result exists only where all have passed."""

    name: str  # what was compared
    passed: bool  # true
    evidence: str  # the numbers
