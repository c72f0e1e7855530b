"""`learned_mask`: an exact budget, trained to keep the model's predictions (docs/methods.md 1.8)."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from criteria.by_name import resolve
from criteria.experiment_context import ExperimentContext
from criteria.gate_slopes import frozen
from criteria.mask_budget import MaskBudget
from criteria.mask_gates import masked_gates
from criteria.pairs import room_of
from criteria.text.halves import halved
from criteria.text.windows import Windows
from experts.ablation import restricted
from experts.arrays import Array
from experts.effects.outcome import log_probabilities
from experts.errors import ExciseError
from experts.notes import tell
from experts.plan import Plan

SEED = 20061117  # of noise, and of the windows of a step
EVERY = 10  # steps between two checks
QUARTER = 4  # of the training half, a step reads one part in so many
RATE, FIRST_MOMENT, SECOND_MOMENT = 0.1, 0.9, 0.99  # of Adam
WARM, COLD = 1.0, 0.05  # temperatures τ of the first and the last step
SPREAD = 3.0  # distance of the first and the last logit of the ranking that training begins with


def learned_mask(
    context: ExperimentContext, updates: int, patience: int, start: str, windows: int
) -> dict[str, Array]:
    """Train one survival logit per expert with an exact budget, against the unpruned model's predictions.

    learned_mask: min KL(unpruned ‖ pruned). A step adds logistic noise, takes exactly the budget's top
    experts, routes again without the others, and sends slopes straight through σ((logit − boundary) / τ),
    with the noise and its negative; slopes are projected on the budget's tangent plane, Adam steps, and one
    shift brings the expected number back. Trained on one half of the text; every ten steps the mask without
    noise is judged on the other half, and the best one is taken, that of the start included.
    Source: RCO, https://arxiv.org/abs/2605.00649

    Args:
        context: model, text and budget
        updates: steps of training at most
        patience: checks without a lower KL after which training ends
        start: criterion of observed statistics whose ranking it begins with
        windows: how many windows are used; 0 = all

    Returns:
        `score` [L, E]: the logits of the best step.
        `checks` [n, 2]: step, and KL on the other half in nats per token.

    Raises:
        ExciseError: the model is streamed, or there are fewer than two windows.
    """
    if context.anatomy.weights.streamed:
        what = "learned_mask trains through the whole model, which is read layer by layer here"
        raise ExciseError(f"{what}; keep it in memory (memory.model: resident), or use another criterion")
    training = _Training(context, start, windows)
    with tqdm(total=updates, initial=training.step, desc="learned mask", unit="step", delay=2) as bar:
        while training.step < updates and not training.is_done(patience):
            training.update(training.step / max(1, updates - 1))
            bar.update()
            if training.step % EVERY == 0 or training.step == updates:
                training.check()
    first, best = training.checks[0][1], min(kl for _, kl in training.checks)
    tell(f"learned_mask: KL {first:.4g} at the start, {best:.4g} at best, after {training.step} steps")
    shape = (context.shape.num_layers, context.shape.num_experts)
    return {"score": training.best.double().numpy().reshape(shape), "checks": np.array(training.checks)}


@dataclass
class _Training:
    """Logits on their way; what an interruption must not lose is stored at every check.

    Attributes:
        logits: survival logits now [L·E]
        best: those of the lowest KL on the other half
        moments: Adam's first and second
        checks: step and KL on the other half, from step 0 on
        step: how many steps were made
    """

    context: ExperimentContext
    start: str
    windows: int
    checks: list[list[float]] = field(default_factory=list)
    step: int = 0

    def __post_init__(self) -> None:
        self.budget = MaskBudget(room_of(self.context))
        self.train, self.other = halves(self.context.chosen(self.windows))
        stored = self.context.partial.read()
        if stored:
            self.logits, self.best = (torch.from_numpy(stored[name]).double() for name in ("logits", "best"))
            self.moments = list(torch.from_numpy(stored["moments"]).double())
            self.checks, self.step = stored["checks"].tolist(), int(stored["checks"][-1][0])
            return
        self.logits = self.best = self._first()
        self.moments = [torch.zeros_like(self.logits) for _ in range(2)]
        self.check()

    def _first(self) -> Tensor:
        """Logits in the order of a ranking, the same distance apart within every block."""
        scores = resolve(self.start).score(self.context.statistics).reshape(-1)
        ranked = torch.from_numpy(np.where(np.isnan(scores), -np.inf, scores))
        logits = torch.zeros_like(ranked)
        for block in self.budget.blocks:
            order = torch.argsort(ranked[block], stable=True)
            logits[block[order]] = torch.linspace(-SPREAD / 2, SPREAD / 2, len(block), dtype=torch.float64)
        return self.budget.retracted(logits)

    def is_done(self, patience: int) -> bool:
        """Whether the last checks brought nothing."""
        costs = [kl for _, kl in self.checks]
        return len(costs) - 1 - int(np.argmin(costs)) >= patience

    def update(self, progress: float) -> None:
        """Make a step; progress: from 0 to 1, for the temperature."""
        draw = torch.Generator().manual_seed(SEED + self.step)
        count = max(1, len(self.train) // QUARTER)
        rows = torch.randperm(len(self.train), generator=draw)[:count].numpy()
        uniform = torch.rand(len(self.logits), generator=draw, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
        noise = uniform.log() - (1 - uniform).log()
        temperature = WARM * (COLD / WARM) ** progress
        slopes = self._slopes(self.train.select(np.sort(rows)), noise, temperature)
        self.logits = self.budget.retracted(
            self.logits - self._adam(self.budget.tangent(slopes, self.logits))
        )
        self.step += 1

    def _adam(self, slopes: Tensor) -> Tensor:
        first, second = self.moments
        first = FIRST_MOMENT * first + (1 - FIRST_MOMENT) * slopes
        second = SECOND_MOMENT * second + (1 - SECOND_MOMENT) * slopes.square()
        self.moments = [first, second]
        count = self.step + 1
        mean, square = first / (1 - FIRST_MOMENT**count), second / (1 - SECOND_MOMENT**count)
        step: Tensor = RATE * mean / (square.sqrt() + 1e-8)
        return step

    def _slopes(self, windows: Windows, noise: Tensor, temperature: float) -> Tensor:
        """Slope of the mean KL in every logit, the mean of a noise and its negative [L·E]."""
        anatomy, total = self.context.anatomy, torch.zeros_like(self.logits)
        with frozen(anatomy):
            for tokens in torch.split(windows.tensor(anatomy.device), self.context.batch):
                clean = self._clean(tokens)
                for signed in (noise, -noise):
                    logits = (self.logits + signed).requires_grad_()
                    kept = self.budget.kept(logits.detach())
                    soft = self.budget.softened(logits, kept, temperature)
                    shape = (len(anatomy.layers), anatomy.shape.num_experts)
                    survival = soft.float().view(shape).to(anatomy.device)
                    with masked_gates(anatomy, kept.view(shape), survival):
                        divergence = _divergence(clean, self._logits(tokens)).sum()
                    (found,) = torch.autograd.grad(divergence, logits)
                    total += found / (2 * windows.tokens.size)
        return total

    def check(self) -> None:
        """Judge the mask without noise on the other half, and store everything."""
        anatomy, shape = self.context.anatomy, self.context.shape
        kept = self.budget.kept(self.logits).numpy().reshape(shape.num_layers, shape.num_experts)
        ids = {
            layer: tuple(map(int, np.flatnonzero(row))) for layer, row in zip(shape.layers, kept, strict=True)
        }
        plan, total = Plan(shape.num_experts, ids), 0.0
        with torch.no_grad():
            for tokens in torch.split(self.other.tensor(anatomy.device), self.context.batch):
                clean = self._clean(tokens)
                with restricted(anatomy, plan):
                    total += float(_divergence(clean, self._logits(tokens)).double().sum())
        self.checks.append([float(self.step), total / self.other.tokens.size])
        if self.checks[-1][1] <= min(kl for _, kl in self.checks):
            self.best = self.logits
        self.context.partial.write(
            {
                "logits": self.logits.numpy(),
                "best": self.best.numpy(),
                "moments": torch.stack(self.moments).numpy(),
                "checks": np.array(self.checks),
            }
        )

    @torch.no_grad()
    def _clean(self, tokens: Tensor) -> Tensor:
        return log_probabilities(self._logits(tokens))

    def _logits(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.context.anatomy.model(input_ids=tokens, use_cache=False).logits
        return logits


def _divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """KL(clean ‖ pruned) of every position [B, W], from log probabilities and logits [B, W, V]."""
    return (clean.exp() * (clean - log_probabilities(logits))).sum(dim=-1)


def halves(windows: Windows) -> tuple[Windows, Windows]:
    """Deal windows in turns, domain by domain: those to train on, and those to choose the step by.

    Raises:
        ExciseError: there are fewer than two.
    """
    if len(windows) < 2:
        raise ExciseError("learned_mask needs two windows or more: to train on, and to choose the step by")
    return halved(windows)
