"""What recovery learns from: the text (cross-entropy), and the unpruned teacher (Kullback-Leibler divergence). Nats per token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from experts.effects.outcome import token_losses

TINY = 1e-7  # probability of the rest: below this float32 cannot tell 1 − Σ from 0


@dataclass(frozen=True)
class TeacherLogits:
    """The teacher's distribution at temperature τ for every position but the last of N windows of W tokens.

    logs: log probabilities, [N, W − 1, V] of the whole vocabulary, or [N, W − 1, K] of the tokens in `ids` (the rest is one outcome).
    """

    logs: Tensor
    ids: Tensor | None = None


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of the next token. logits: [N, W, V], tokens: [N, W]."""
    return token_losses(logits, tokens).mean()


def log_softened(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(z / τ), at least float32."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.log_softmax(logits.to(wide) / temperature, dim=-1)


def best(logits: Tensor, temperature: float, k: int) -> TeacherLogits:
    """The K best tokens of every position, with their log probabilities under the whole vocabulary."""
    logs, ids = log_softened(logits, temperature).topk(min(k, logits.shape[-1]), dim=-1)
    return TeacherLogits(logs, ids)


def divergence(targets: TeacherLogits, logits: Tensor, temperature: float) -> Tensor:
    """Mean τ²·KL(teacher ‖ student) over N·(W − 1) positions; τ² keeps its gradient comparable over τ (arXiv 1503.02531).

    With K cached tokens the KL is that of K + 1 outcomes, the last one being "any other token": a lower bound of the whole KL
    (data processing inequality), equal to it for K = V. logits: [N, W, V].
    """
    student, teacher = log_softened(logits[:, :-1], temperature), targets.logs
    if targets.ids is not None:
        known = student.gather(-1, targets.ids)
        student, teacher = _with_rest(known, targets.ids, logits), _with_rest(teacher, targets.ids, logits)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(dim=-1).mean()


def _with_rest(logs: Tensor, ids: Tensor, logits: Tensor) -> Tensor:
    """Log probabilities [N, W − 1, K + 1] with that of all other tokens behind; nothing is added where K is the whole vocabulary."""
    if ids.shape[-1] == logits.shape[-1]:
        return logs
    rest = (1 - logs.exp().sum(dim=-1, keepdim=True)).clamp(min=TINY)
    return torch.cat([logs, rest.log()], dim=-1)
