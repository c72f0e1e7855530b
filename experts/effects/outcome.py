"""What an intervention is measured by, per position, in nats.

Cross-entropy of the next token, and KL(clean ‖ ablated).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Logits worked on at once: wide copies of all would be the largest tensors of a run. On a CPU they also have
# to stay in its cache (twice as fast as 2**24 with KL), on a GPU every block costs launches.
BLOCK = {"cpu": 2**20, "cuda": 2**26}


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of the next token at every position but the last.

    Args:
        logits: [N, W, V]
        tokens: [N, W]

    Returns:
        Losses in nats [N, W − 1], at least float32.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    losses = [
        nn.functional.cross_entropy(window[:-1].to(wide), ids[1:], reduction="none")
        for window, ids in zip(logits, tokens.to(logits.device), strict=True)
    ]
    return torch.stack(losses)


def log_probabilities(logits: Tensor) -> Tensor:
    """log softmax over the vocabulary [..., V], at least float32."""
    return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def outcomes(
    logits: Tensor, targets: Tensor, clean: Tensor | None, position: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss and KL of C predictions.

    Args:
        logits: of the ablated model [C, V]
        targets: next tokens [C]
        clean: log probabilities of the unmodified model at all positions [P, V]; without them KL is nan
        position: which of the P positions each prediction is at [C]

    Returns:
        Loss and KL in nats, float64 [C] each.
    """
    loss = torch.empty(len(logits), dtype=torch.float64, device=logits.device)
    divergence = torch.full_like(loss, torch.nan)
    for part in _blocks(len(logits), logits.shape[-1], logits.device.type):
        ablated = log_probabilities(logits[part])
        loss[part] = -ablated.gather(1, targets[part, None])[:, 0].double()
        if clean is not None:
            divergence[part] = _divergence(clean[position[part]], ablated)
    return loss, divergence


def _divergence(clean: Tensor, ablated: Tensor) -> Tensor:
    """KL(clean ‖ ablated) of log probabilities [C, V], float64 [C]."""
    total = (clean.exp() * (clean - ablated)).sum(dim=-1, dtype=torch.float64)
    return total.clamp(min=0)  # rounding can make the sum of a vanishing divergence negative


def _blocks(count: int, width: int, device: str) -> Iterator[slice]:
    """Slices of `count` predictions whose logits, `width` each, are worked on at once."""
    size = max(1, BLOCK.get(device, BLOCK["cuda"]) // width)
    return (slice(start, start + size) for start in range(0, count, size))
