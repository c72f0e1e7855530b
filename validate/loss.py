"""Cross-entropy of held-out windows, per window, in nats."""

import numpy as np
import torch
from transformers import PreTrainedModel

from criteria.text.windows import Windows
from experts.arrays import Array
from experts.effects.outcome import token_losses


@torch.no_grad()
def window_losses(model: PreTrainedModel, windows: Windows, batch: int = 8) -> Array:
    """Return the mean cross-entropy of every window [N], nats per token, float64.

    A position counts when neither it nor its next token is padding.

    Args:
        model: the model, as it is now
        windows: N windows of W tokens
        batch: windows per forward
    """
    device = next(model.parameters()).device
    means = []
    for start in range(0, len(windows), batch):
        part = windows.select(np.arange(start, min(start + batch, len(windows))))
        tokens, mask = part.tensor(device), torch.from_numpy(part.mask).to(device)
        padding = {} if bool(mask.all()) else {"attention_mask": mask.long()}
        logits = model(input_ids=tokens, use_cache=False, **padding).logits
        losses = token_losses(logits, tokens).double()  # [batch, W − 1]
        counts = torch.from_numpy(part.readable).to(device).double()
        means.append(((losses * counts).sum(1) / counts.sum(1)).cpu().numpy())
    return np.concatenate(means)
