"""Cross-entropy of held-out windows, per window, in nats."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from criteria.text import Windows


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of the next token at every position but the last: logits [N, W, V], tokens [N, W] -> [N, W − 1], at least float32."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    # Window by window: with a vocabulary of 150,000 a wide copy of a whole batch would be the largest tensor of the run.
    rows = [nn.functional.cross_entropy(row[:-1].to(wide), ids[1:], reduction="none") for row, ids in zip(logits, tokens, strict=True)]
    return torch.stack(rows)


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
