"""What an intervention is measured by: cross-entropy of the next token and KL(clean ‖ ablated), per position, in nats."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Logits worked on at once: wide copies of all would be the largest tensors of a run. On a CPU they also have to stay in its cache (twice as
# fast as 2**24 with KL), on a GPU every block costs launches.
BLOCK = {"cpu": 2**20, "cuda": 2**26}


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of the next token at every position but the last: logits [N, W, V], tokens [N, W] -> [N, W − 1], at least float32."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    rows = [
        nn.functional.cross_entropy(row[:-1].to(wide), ids[1:], reduction="none")
        for row, ids in zip(logits, tokens, strict=True)
    ]
    return torch.stack(rows)


def log_probabilities(logits: Tensor) -> Tensor:
    """log softmax over the vocabulary, at least float32 [..., V]."""
    return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def row_outcomes(
    logits: Tensor, targets: Tensor, clean: Tensor | None, position: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss and KL of R rows, float64 [R] each. KL is nan where `clean` is not given.

    logits: [R, V]; targets: next tokens [R]; clean: log probabilities of the unmodified model [P, V]; position: the row of `clean` that
    belongs to each row [R].
    """
    loss = torch.empty(len(logits), dtype=torch.float64, device=logits.device)
    divergence = torch.full_like(loss, torch.nan)
    for part in _blocks(len(logits), logits.shape[-1], logits.device.type):
        ablated = log_probabilities(logits[part])
        loss[part] = -ablated.gather(1, targets[part, None])[:, 0].double()
        if clean is not None:
            before = clean[position[part]]
            # Rounding can make the sum of a vanishing divergence negative.
            divergence[part] = (
                (before.exp() * (before - ablated)).sum(dim=-1, dtype=torch.float64).clamp(min=0)
            )
    return loss, divergence


def _blocks(rows: int, width: int, device: str) -> Iterator[slice]:
    size = max(1, BLOCK.get(device, BLOCK["cuda"]) // width)
    return (slice(start, start + size) for start in range(0, rows, size))
