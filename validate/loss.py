"""Cross-entropy of held-out windows, per window, in nats."""

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from criteria.text.windows import Windows
from experts.effects.outcome import token_losses


@torch.no_grad()
def window_losses(model: PreTrainedModel, windows: Windows, batch: int = 8) -> NDArray[np.float64]:
    """Mean cross-entropy of every window [N], float64; a position counts when it and its next token are not padding."""
    device = next(model.parameters()).device
    losses = []
    for start in range(0, len(windows), batch):
        tokens = torch.from_numpy(windows.tokens[start : start + batch]).to(device)
        mask = torch.from_numpy(windows.mask[start : start + batch]).to(device)
        padding = {} if bool(mask.all()) else {"attention_mask": mask.long()}
        found = token_losses(model(input_ids=tokens, use_cache=False, **padding).logits, tokens).double()
        valid = (mask[:, 1:] & mask[:, :-1]).double()
        losses.append(((found * valid).sum(1) / valid.sum(1)).cpu().numpy())
    return np.concatenate(losses)
