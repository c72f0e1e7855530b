"""transformers' Trainer with the loss of recovery, and what stops it before a bad number reaches a weight."""

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


class TrainingWindows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Training windows with their numbers, by which a cached teacher finds its targets."""

    def __init__(self, windows: Windows) -> None:
        self.tokens = windows.tensor("cpu")

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"rows": torch.tensor(row), "input_ids": self.tokens[row]}


class RecoveryTrainer(Trainer):
    """Trains with loss = ce · CE(text) + kl · τ² · KL(teacher ‖ student), nats per token.

    Attributes:
        wrapped: the model with its adapters
        parts: (loss, ce, kl) of every batch since they were last taken
        tuned: the adapters' parameters by name
        good: the adapters' weights under which the loss was last finite, on their own device, so that no step
            waits for a transfer; empty until a loss was finite
    """

    def __init__(self, settings: Training, teacher: Teacher | None, **options: Any) -> None:
        """Prepare a training.

        Args:
            settings: weights of the losses, temperature
            teacher: None where kl = 0
            options: of transformers' Trainer
        """
        super().__init__(**options)
        self.settings, self.teacher = settings, teacher
        self.wrapped: nn.Module = options["model"]
        # The loss is a mean per batch: Trainer divides it by the batches of a step.
        self.model_accepts_loss_kwargs = False
        self.parts: list[tuple[float, float, float]] = []
        self.tuned = {
            name: parameter for name, parameter in self.wrapped.named_parameters() if parameter.requires_grad
        }
        self.good: dict[str, Tensor] = {}
        self.good_step = -1

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        """Return the loss of one batch [], nats per token.

        Raises:
            NotFiniteError: the loss is not finite; it never reaches a weight.
        """
        tokens, settings = inputs["input_ids"], self.settings
        targets = self.teacher.targets(inputs["rows"], tokens) if self.teacher is not None else None
        logits = model(input_ids=tokens, use_cache=False).logits
        ce = cross_entropy(logits, tokens)
        kl = torch.zeros_like(ce)
        if targets is not None:
            kl = divergence(targets, logits, settings.temperature)
        loss = settings.ce * ce + settings.kl * kl
        self.parts.append((float(loss.detach()), float(ce.detach()), float(kl.detach())))
        if not math.isfinite(self.parts[-1][0]):
            raise NotFiniteError(f"the loss is {self.parts[-1][0]} at step {self.state.global_step + 1}")
        # At the first batch of a step the weights are those that the step before made.
        if self.state.global_step != self.good_step:
            self._keep_good()
        return loss

    @torch.no_grad()
    def _keep_good(self) -> None:
        """Copy the adapters' weights, into the same memory every time."""
        if not self.good:
            self.good = {name: torch.empty_like(parameter) for name, parameter in self.tuned.items()}
        for name, parameter in self.tuned.items():
            self.good[name].copy_(parameter)
        self.good_step = self.state.global_step


class Guard(TrainerCallback):
    """Stops before a gradient that is not finite reaches the adapter."""

    def __init__(self, tuned: dict[str, nn.Parameter]) -> None:
        self.tuned = tuned

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: Any,
        control: Any,  # noqa: ARG002
        **_: Any,
    ) -> None:
        gradients = [parameter.grad for parameter in self.tuned.values() if parameter.grad is not None]
        if not math.isfinite(float(torch.nn.utils.get_total_norm(gradients))):
            raise NotFiniteError(f"a gradient is not finite at step {state.global_step + 1}")
