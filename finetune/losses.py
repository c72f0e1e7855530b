"""What recovery learns from: the text (cross-entropy) and the unpruned teacher (KL divergence), in nats.

Shapes: N windows of W tokens, V tokens in the vocabulary, K of them cached.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from experts.effects.outcome import token_losses

TINY = 1e-7  # probability of the rest: below this float32 cannot distinguish 1 − Σ from 0


@dataclass(frozen=True)
class TeacherLogits:
    """The teacher's distribution at temperature τ, at every position but the last.

    Attributes:
        logs: log probabilities of the whole vocabulary [N, W − 1, V], or of the tokens in `ids`
            [N, W − 1, K], all other tokens being one outcome
        ids: token ids [N, W − 1, K]; None = the whole vocabulary
    """

    logs: Tensor
    ids: Tensor | None = None


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next token [], nats.

    Args:
        logits: of the student [N, W, V]
        tokens: of the text [N, W]
    """
    return token_losses(logits, tokens).mean()


def log_softened(logits: Tensor, temperature: float) -> Tensor:
    """Return log softmax(z / τ) over the last axis, in at least float32.

    Args:
        logits: z […, V]
        temperature: τ

    Returns:
        Log probabilities […, V].
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.log_softmax(logits.to(wide) / temperature, dim=-1)


def top_tokens(logits: Tensor, temperature: float, k: int) -> TeacherLogits:
    """Return the K likeliest tokens of every position, with their log probabilities in the whole vocabulary.

    Args:
        logits: of the teacher [N, W − 1, V]
        temperature: τ
        k: K, at most V
    """
    logs, ids = log_softened(logits, temperature).topk(min(k, logits.shape[-1]), dim=-1)
    return TeacherLogits(logs, ids)


def divergence(targets: TeacherLogits, logits: Tensor, temperature: float) -> Tensor:
    """Return the mean of τ²·KL(teacher ‖ student) over N·(W − 1) positions [], nats.

    τ² keeps the gradient comparable over τ (https://arxiv.org/abs/1503.02531). With K cached tokens the KL is
    that of K + 1 outcomes, the last one being "any other token": a lower bound of the whole KL (data
    processing inequality), equal to it for K = V.

    Args:
        targets: of the teacher, at the same τ
        logits: of the student [N, W, V]
        temperature: τ
    """
    student, teacher = log_softened(logits[:, :-1], temperature), targets.logs
    if targets.ids is not None:
        vocabulary = logits.shape[-1]
        student = _with_rest(student.gather(-1, targets.ids), vocabulary)
        teacher = _with_rest(teacher, vocabulary)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(dim=-1).mean()


def _with_rest(logs: Tensor, vocabulary: int) -> Tensor:
    """Log probabilities of K tokens, and behind them that of all others: [N, W − 1, K] -> [N, W − 1, K + 1].

    Nothing is added where K is the whole vocabulary.
    """
    if logs.shape[-1] == vocabulary:
        return logs
    rest = (1 - logs.exp().sum(dim=-1, keepdim=True)).clamp(min=TINY)
    return torch.cat([logs, rest.log()], dim=-1)
