"""The demo, pruned and refitted: a checkpoint for other readers, and what the same model gives in memory."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

import criteria
import experts
import finetune
import prune
from experts.ablation import restricted

WINDOWS = 16  # that the refit reads: weights that changed are asked for, not good ones


def write_refitted(kept: Mapping[int, tuple[int, ...]], tokens: Tensor, out: Path) -> dict[str, Tensor]:
    """Refit the demo as it is stored, in bfloat16, and export it.

    Args:
        kept: decoder layer -> ids of the experts that are kept
        tokens: ids [N, W]
        out: folder of the checkpoint

    Returns:
        float32 logits [N, W, V] of the restricted model: `plain`, and `refitted` with the refit's weights.
    """
    model = experts.load("demo")
    text = criteria.windows(model, stdlib="code", split="calibration", sequences=WINDOWS, length=256)
    refit = finetune.refit_experts(model, experts.Plan(model.shape.num_experts, kept), text)
    prune.export(model, refit.plan, out, refit=refit)
    exact = experts.load("demo", dtype="float32")
    with torch.no_grad(), restricted(exact.anatomy, refit.plan):
        plain = exact.network(input_ids=tokens).logits
    with torch.no_grad(), finetune.refitted(exact, refit):
        return {"plain": plain, "refitted": exact.network(input_ids=tokens).logits}
