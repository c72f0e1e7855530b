"""The content of recovery.json, which `excise finetune --json` prints."""

from typing import TypedDict

from criteria.text.windows import TextJson
from prune.results import ModelJson
from validate.results import LeadJson, RecoveredCostJson


class TeacherJson(TypedDict):
    """Where the targets of the distillation came from."""

    model: str  # folder or hub id
    keep: str  # `memory` (the same weights) or `disk` (its largest logits were cached)
    top_k: int | None  # cached logits per position; None in memory


class TrainingJson(TypedDict):
    """How a model was trained; also in excise_recovery.json of the checkpoint."""

    targets: list[str]  # groups or names of the adapted weights
    rank: int  # of the adapters
    alpha: float  # adapters are scaled by alpha / rank
    learning_rate: float  # peak
    weight_decay: float  # of AdamW, on the adapters
    ce: float  # weight of the cross-entropy
    kl: float  # weight of KL(teacher ‖ student)
    temperature: float  # τ of the KL
    seed: int  # of the windows, the adapters and their order
    bf16: bool  # whether forwards ran in bfloat16
    teacher: TeacherJson | None  # None without KL
    steps: int  # optimiser steps
    tokens: int  # training tokens, all steps together
    text: TextJson  # training windows
    tuned: int  # trained parameters
    weights: int  # how many weights were adapted


class CurvePointJson(TypedDict):
    """Held-out loss of a plan during its training."""

    step: float  # optimiser steps done
    tokens: float  # training tokens seen
    seconds: float  # of training
    held_out: float  # mean loss on the validation text, nats per token
    delta: float  # its rise over the unpruned model's
    share: float | None  # of the loss before training that came back; None where nothing was lost


class RecoveredPlanJson(TypedDict):
    """One plan before and after recovery."""

    name: str  # `criterion`, `random-0`, … or `unpruned`
    plan: str  # which criterion made it
    digest: str  # identity of the kept experts
    measures: list[RecoveredCostJson]  # cost before and after, the held-out loss first, then tasks
    curve: list[CurvePointJson]  # during training


class RecoverySummary(TypedDict):
    """The measured part of recovery.json."""

    criterion: str  # whose plan is written
    budget: str  # of all plans
    fraction: float  # share of the experts that was removed
    loss: float  # of the unpruned model, nats per token
    full: dict[str, float]  # measure -> value of the unpruned model
    plans: list[RecoveredPlanJson]  # the criterion's first
    leads: list[LeadJson]  # over random plans, one a measure; empty where none was recovered
    rule: str  # how a verdict on a lead comes about


class PlacesJson(TypedDict):
    """Where things are; a folder may have been moved since they were made."""

    run: str  # the run folder
    checkpoint: str  # folder of the recovered checkpoint
    adapter: str  # folder of its adapter


class RecoveryResult(RecoverySummary, PlacesJson):
    """recovery.json."""

    training: TrainingJson  # the same for all plans
    text: TextJson  # validation windows
    model: ModelJson  # the unpruned model
