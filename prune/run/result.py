"""The content of validation.json, and what `excise prune --json` prints."""

from typing import TypedDict

from prune.recover.result import RecoveryResult
from prune.results import Check, Evidence, ModelIdentity, Texts

TestedPlan = Evidence  # and `size`: bytes of all tensors of the pruned checkpoint


class Sizes(TypedDict):
    """Bytes of all tensors.

    Attributes:
        before: of the unpruned model.
        removed: by the plan that is written.
    """

    before: int
    removed: int


class ValidationResult(TypedDict):
    """validation.json: every tested plan against random plans, on held-out text.

    Attributes:
        plans: a row per criterion and scope; the first one is the plan that is written.
        rule: how a verdict comes about.
        checks: of the instrument, all passed.
        loss: of the unpruned model, nats per token.
        chance: how p comes about, `counted` or `normal`.
        text: what the criteria and the tests saw.
        shared_documents: validation documents that also supplied calibration windows.
        model: which model was tested.
        size: before pruning, and what it takes away.
        agreement: criterion -> Spearman with the measured removals, per MoE layer [L]; empty where none were measured.
        without_data: experts that no calibration token reached.
        protected: experts that no plan may remove.
    """

    plans: list[TestedPlan]
    rule: str
    checks: list[Check]
    loss: float
    chance: str
    text: Texts
    shared_documents: int
    model: ModelIdentity
    size: Sizes
    agreement: dict[str, list[float | None]]
    without_data: int
    protected: int


class PruneResult(ValidationResult):
    """What `excise prune --json` prints: validation.json, and what was made.

    Attributes:
        run: the run folder.
        checkpoint: folder of the pruned checkpoint; None where the recipe stopped on the verdict.
        notes: what a user should know of budget and checkpoint.
        recovery: content of recovery.json, where the recipe asks for recovery.
    """

    run: str
    checkpoint: str | None
    notes: list[str]
    recovery: RecoveryResult | None
