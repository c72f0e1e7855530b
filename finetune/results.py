"""What a training looks like in JSON files: a type per object, a comment per key."""

from typing import TypedDict

from criteria.text.windows import TextJson


class CurvePoint(TypedDict):
    """A point of the curve of held-out loss during training."""

    step: float  # optimiser steps done
    tokens: float  # training tokens seen
    seconds: float  # of training
    held_out: float  # mean loss on the held-out text, nats per token


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


class RecoveryJson(TypedDict):
    """excise_recovery.json of a checkpoint."""

    plan: str  # digest of the plan
    training: TrainingJson
