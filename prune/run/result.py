"""The content of validation.json, and what `excise prune --json` prints."""

from typing import TypedDict

from prune.recover.result import RecoveryResult
from prune.results import AllocationJson, ModelJson, TextsJson
from validate.results import CheckJson, EvidenceJson


class TestedPlanJson(EvidenceJson):
    """A tested plan of one model."""

    size: int  # bytes of all tensors of the pruned checkpoint


class SizesJson(TypedDict):
    """Bytes of all tensors."""

    before: int  # of the unpruned model
    removed: int  # by the plan that is written


class ValidationResult(TypedDict):
    """validation.json: every tested plan against random plans, on held-out text."""

    plans: list[TestedPlanJson]  # a row per criterion and scope; the first one is the plan that is written
    rule: str  # how a verdict comes about
    checks: list[CheckJson]  # of the instrument, all passed
    loss: float  # of the unpruned model, nats per token
    chance: str  # how p comes about, `counted` or `normal`
    text: TextsJson  # what the criteria and the tests saw
    shared_documents: int  # validation documents that also supplied calibration windows
    model: ModelJson  # which model was tested
    size: SizesJson  # before pruning, and what it takes away
    agreement: dict[str, list[float | None]]  # criterion -> Spearman with the measured removals [L]
    without_data: int  # experts that no calibration token reached
    allocations: list[AllocationJson]  # counts per layer by what a refit leaves; empty where scores decide
    protected: int  # experts that no plan may remove


class PruneResult(ValidationResult):
    """What `excise prune --json` prints: validation.json, and what was made."""

    run: str  # the run folder
    checkpoint: str | None  # folder of the pruned checkpoint; None where the recipe stopped on the verdict
    notes: list[str]  # what a user should know of budget and checkpoint
    recovery: RecoveryResult | None  # content of recovery.json, where the recipe asks for recovery
