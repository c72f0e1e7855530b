"""How a pruned model is recovered, as a recipe writes it.

Recipe schemas import this module at start-up, so it does not import torch.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from experts.settings import OneOrMany, Settings

GROUPS = ("attention", "router", "experts")
ROUTER_ONLY = "router_only"


class TeacherSettings(Settings):
    """Where the distillation targets come from."""

    model: str | None = Field(
        default=None,
        description="hub id or folder, same architecture and vocabulary; none = the unpruned model",
    )
    keep: Literal["auto", "memory", "disk"] = Field(
        default="auto",
        description=(
            "memory: one set of weights is both models; disk: its best logits are cached; "
            "auto: memory if it fits"
        ),
    )
    top_k: int = Field(
        default=64, gt=0, description="tokens per position that are cached on disk; the rest is one outcome"
    )

    @model_validator(mode="after")
    def _one_set_of_weights(self) -> "TeacherSettings":
        if self.model is not None and self.keep == "memory":
            raise ValueError(
                "keep: memory shares the weights of the unpruned model; another teacher needs keep: disk "
                "(or auto)"
            )
        return self


class Training(Settings):
    """LoRA on a pruned model: what moves, by which loss, how long."""

    checkpoint: Path | None = Field(
        default=None, description="a pruned folder to recover; none = the one this recipe prunes"
    )
    targets: OneOrMany[str] = Field(
        default=GROUPS, min_length=1, description="attention, router, experts, or names of weights"
    )
    rank: int = Field(default=8, gt=0, description="rank of the adapters (of every expert)")
    alpha: float = Field(default=16.0, gt=0, description="adapters are scaled by alpha / rank")
    steps: int | None = Field(
        default=None, gt=0, description="optimiser steps; none = one pass over the windows"
    )
    accumulate: int = Field(default=1, gt=0, description="batches per optimiser step")
    learning_rate: float = Field(
        default=5e-4, gt=0, description="peak; linear warm-up over 5 % of the steps, then cosine to 0"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW, on the adapters")
    ce: float = Field(default=1.0, ge=0, description="weight of the cross-entropy of the text")
    kl: float = Field(default=1.0, ge=0, description="weight of KL(teacher ‖ student)")
    temperature: float = Field(default=1.0, gt=0, description="τ of the KL; its gradient is scaled by τ²")
    teacher: TeacherSettings = Field(default=TeacherSettings(), description="of the KL")
    bf16: bool = Field(default=False, description="forwards in bfloat16 (autocast), adapters in float32")
    gradient_checkpointing: bool = Field(
        default=False, description="activations are computed twice instead of kept: less memory, slower"
    )
    save_steps: int = Field(
        default=50, gt=0, description="steps between the states an interrupted training resumes from"
    )
    measure: int = Field(
        default=5, gt=0, description="points of the curve of held-out loss against training tokens"
    )
    random_plans: int = Field(
        default=3, ge=0, description="random plans that get the same recovery; 0 = no control, no verdict"
    )
    unpruned: bool = Field(
        default=False,
        description="recover the unpruned model too: what the training does where nothing is missing",
    )

    @field_validator("random_plans")
    @classmethod
    def _enough(cls, value: int) -> int:
        if value in (1, 2):
            raise ValueError("the spread of chance needs at least 3 random plans; 0 leaves the control out")
        return value

    @model_validator(mode="after")
    def _some_loss(self) -> "Training":
        if self.ce == 0 and self.kl == 0:
            raise ValueError("ce and kl are both 0: there is nothing to learn from")
        if ROUTER_ONLY in self.targets and len(self.targets) > 1:
            raise ValueError("router_only is for routers alone; to train routers and more, list router")
        return self
