"""Labels drawn from what the model itself expects: their slopes make its Fisher information.

Every token has its own uniform number, drawn beforehand: neither batches nor interruptions change a label.
"""

import torch
from torch import Tensor

from experts.effects.outcome import log_probabilities

SEED = 20061117  # of the uniform numbers


def uniforms(tokens: Tensor, draws: int) -> Tensor:
    """Return a number in [0, 1) for every draw and token of windows [N, W]: float64 [N, draws, W]."""
    num_windows, length = tokens.shape
    generator = torch.Generator().manual_seed(SEED)
    return torch.rand(draws, num_windows, length, generator=generator, dtype=torch.float64).transpose(0, 1)


def label_losses(logits: Tensor, numbers: Tensor) -> Tensor:
    """Return −log p of labels drawn by the inverse of the distribution function.

    Args:
        logits: [B, W, V]
        numbers: of `uniforms` [B, draws, W]

    Returns:
        Losses in nats, with slopes in the logits [draws, B, W].
    """
    of_windows = []
    for window, numbers_of in zip(logits, numbers.to(logits.device), strict=True):
        logs = log_probabilities(window)  # [W, V]
        with torch.no_grad():
            reached = logs.double().exp().cumsum(dim=-1)
            threshold = numbers_of.T * reached[:, -1:]  # [W, draws]
            labels = torch.searchsorted(reached, threshold.contiguous(), right=True)
            labels = labels.clamp(max=logs.shape[-1] - 1)
        of_windows.append(-logs.gather(1, labels).T)
    return torch.stack(of_windows, dim=1)
