"""Parts of JSON files that several commands write. The rest of a command's file is in its `result.py`."""

from typing import NotRequired, TypedDict

from criteria.text.windows import TextJson


class ModelJson(TypedDict):
    """Which model a result is of."""

    name: str  # as the recipe names it
    fingerprint: str  # of its configuration and every byte of its weights
    commit: NotRequired[str]  # of a model on the hub, the one that was read


class AllocationJson(TypedDict):
    """Counts per layer that were chosen by what is left after each layer's refit."""

    criterion: str  # its name
    fraction: float  # share of the experts that is removed
    layers: list[int]  # decoder layers [L]
    by_scores: list[int]  # experts that each would keep by the raw scores
    chosen: list[int]  # experts that each keeps
    measured: list[int]  # counts that were measured
    kl: list[list[float | None]]  # KL(unpruned ‖ this layer cut and refitted), nats per token [L, counts]
    rise: list[list[float | None]]  # of the loss; null where protected experts do not fit
    expected: float  # Σ over the layers of the KL of the chosen counts
    expected_by_scores: float  # the same of the counts by scores


class TextsJson(TypedDict):
    """What the ranking was made on, and what it was tested on."""

    calibration: TextJson  # text that the criteria saw
    validation: TextJson  # held-out text
