"""transformers' Trainer with the loss of recovery, and what stops it before a number that is not finite reaches a weight."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from criteria.text.windows import Windows
from experts.errors import ExciseError
from finetune.losses import cross_entropy, divergence
from finetune.settings import Training
from finetune.teacher import Teacher


class NotFiniteError(ExciseError):
    """The loss or a gradient became nan or infinite."""


class WindowRows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Windows by their number, which a cached teacher is looked up by."""

    def __init__(self, windows: Windows) -> None:
        self.tokens = windows.tensor("cpu")

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"rows": torch.tensor(row), "input_ids": self.tokens[row]}


class RecoveryTrainer(Trainer):
    """loss = ce · CE(text) + kl · τ² · KL(teacher ‖ student), nats per token.

    teacher: None where kl = 0. parts: (loss, ce, kl) of every batch since they were last taken; good: the adapter's weights under which
    the loss was last finite, empty until one was. They stay on the adapter's device: no step waits for a bus.
    """

    def __init__(self, settings: Training, teacher: Teacher | None, **options: Any) -> None:
        super().__init__(**options)
        self.wrapped: nn.Module = options["model"]
        self.settings, self.teacher = settings, teacher
        self.model_accepts_loss_kwargs = (
            False  # the loss is a mean per batch: Trainer divides it by the batches of a step
        )
        self.parts: list[tuple[float, float, float]] = []
        self.good: dict[str, Tensor] = {}
        self.good_step = -1
        self.tuned = {name: p for name, p in self.wrapped.named_parameters() if p.requires_grad}

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        """Of one batch; a loss that is not finite stops the training before it reaches a weight."""
        tokens, wanted = inputs["input_ids"], self.settings
        targets = self.teacher.targets(inputs["rows"], tokens) if self.teacher is not None else None
        logits = model(input_ids=tokens, use_cache=False).logits
        ce = cross_entropy(logits, tokens)
        kl = divergence(targets, logits, wanted.temperature) if targets is not None else torch.zeros_like(ce)
        loss = wanted.ce * ce + wanted.kl * kl
        self.parts.append((float(loss.detach()), float(ce.detach()), float(kl.detach())))
        if not math.isfinite(self.parts[-1][0]):
            raise NotFiniteError(f"the loss is {self.parts[-1][0]} at step {self.state.global_step + 1}")
        if (
            self.state.global_step != self.good_step
        ):  # the first batch of a step: the weights are those that the step before made
            self._keep_good()
        return loss

    @torch.no_grad()
    def _keep_good(self) -> None:
        """In the same memory every time."""
        if not self.good:
            self.good = {name: torch.empty_like(parameter) for name, parameter in self.tuned.items()}
        for name, parameter in self.tuned.items():
            self.good[name].copy_(parameter)
        self.good_step = self.state.global_step


class Guard(TrainerCallback):
    """Stops before a gradient that is not finite reaches the adapter."""

    def __init__(self, tuned: dict[str, nn.Parameter]) -> None:
        self.tuned = tuned

    def on_pre_optimizer_step(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        gradients = [parameter.grad for parameter in self.tuned.values() if parameter.grad is not None]
        if not math.isfinite(float(torch.nn.utils.get_total_norm(gradients))):
            raise NotFiniteError(f"a gradient is not finite at step {state.global_step + 1}")
