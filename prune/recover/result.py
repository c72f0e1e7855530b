"""The content of recovery.json, which `excise finetune --json` prints."""

from typing import TypedDict

from prune.results import Lead, ModelIdentity, Recovery, TextSummary


class TeacherProvenance(TypedDict):
    """Where the targets of the distillation came from.

    Attributes:
        model: folder or hub id.
        keep: `memory` (the same weights) or `disk` (its largest logits were cached).
        top_k: cached logits per position; None in memory.
    """

    model: str
    keep: str
    top_k: int | None


class TrainingProvenance(TypedDict):
    """How a model was trained; also in excise_recovery.json of the checkpoint.

    Attributes:
        targets: groups or names of the adapted weights.
        rank: of the adapters.
        alpha: adapters are scaled by alpha / rank.
        learning_rate: peak.
        weight_decay: of AdamW, on the adapters.
        ce: weight of the cross-entropy.
        kl: weight of KL(teacher ‖ student).
        temperature: τ of the KL.
        seed: of the windows, the adapters and their order.
        bf16: whether forwards ran in bfloat16.
        teacher: None without KL.
        steps: optimiser steps.
        tokens: training tokens, all steps together.
        text: training windows.
        tuned: trained parameters.
        weights: how many weights were adapted.
    """

    targets: list[str]
    rank: int
    alpha: float
    learning_rate: float
    weight_decay: float
    ce: float
    kl: float
    temperature: float
    seed: int
    bf16: bool
    teacher: TeacherProvenance | None
    steps: int
    tokens: int
    text: TextSummary
    tuned: int
    weights: int


class CurvePoint(TypedDict):
    """Held-out loss of a plan during its training.

    Attributes:
        step: optimiser steps done.
        tokens: training tokens seen.
        seconds: of training.
        held_out: mean loss on the validation text, nats per token.
        delta: its rise over the unpruned model's.
        share: of the loss before training that came back; None where nothing was lost.
    """

    step: float
    tokens: float
    seconds: float
    held_out: float
    delta: float
    share: float | None


class RecoveredPlan(TypedDict):
    """One plan before and after recovery.

    Attributes:
        name: `criterion`, `random-0`, … or `unpruned`.
        plan: which criterion made it.
        digest: identity of the kept experts.
        measures: cost before and after, the held-out loss first, then tasks.
        curve: during training.
    """

    name: str
    plan: str
    digest: str
    measures: list[Recovery]
    curve: list[CurvePoint]


class RecoverySummary(TypedDict):
    """The measured part of recovery.json.

    Attributes:
        criterion: whose plan is written.
        budget: of all plans.
        fraction: share of the experts that was removed.
        loss: of the unpruned model, nats per token.
        full: measure -> value of the unpruned model.
        plans: the criterion's first.
        leads: of the criterion over random plans, one a measure; empty where no random plan was recovered.
        rule: how a verdict on a lead comes about.
    """

    criterion: str
    budget: str
    fraction: float
    loss: float
    full: dict[str, float]
    plans: list[RecoveredPlan]
    leads: list[Lead]
    rule: str


class Places(TypedDict):
    """Where things are; a folder may have been moved since they were made.

    Attributes:
        run: the run folder.
        checkpoint: folder of the recovered checkpoint.
        adapter: folder of its adapter.
    """

    run: str
    checkpoint: str
    adapter: str


class RecoveryResult(RecoverySummary, Places):
    """recovery.json.

    Attributes:
        training: the same for all plans.
        text: validation windows.
        model: the unpruned model.
    """

    training: TrainingProvenance
    text: TextSummary
    model: ModelIdentity
