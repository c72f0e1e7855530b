"""What recovery must not do, checked after every training: move other weights, or bring experts back."""

import torch
from torch import Tensor, nn

from experts.anatomy import Anatomy
from experts.errors import ExciseError
from experts.sharing import kept_counts


def checksums(model: nn.Module) -> dict[str, Tensor]:
    """Return a checksum of every tensor, computed where it lies: the exclusive or of the bits of each row.

    Returns:
        By name, a checksum per row of the last axis. Empty tensors have none.
    """
    sums = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel():
            rows = tensor.detach().reshape(-1, tensor.shape[-1] if tensor.ndim else 1)
            sums[name] = torch.hash_tensor(rows, dim=-1)
    return sums


def check_moved(before: dict[str, Tensor], after: dict[str, Tensor], chosen: set[str]) -> None:
    """Check that only the chosen weights moved.

    Args:
        before: checksums before the training
        after: checksums after it
        chosen: names of the adapted weights

    Raises:
        ExciseError: another weight moved, or a tensor came or went.
    """
    if before.keys() != after.keys():
        raise ExciseError(f"recovery left other tensors than it found: {min(before.keys() ^ after.keys())}")
    for name, checksum in before.items():
        if name not in chosen and not torch.equal(checksum, after[name]):
            raise ExciseError(
                f"recovery moved {name}, which finetune.targets does not name; nothing was written"
            )


def check_counts(anatomy: Anatomy, counts: dict[int, int]) -> None:
    """Check that no layer silently has all its experts again.

    Args:
        anatomy: of the recovered model
        counts: decoder layer -> experts that the plan keeps

    Raises:
        ExciseError: a layer holds another number of experts.
    """
    held = kept_counts(anatomy)
    if held != counts:
        raise ExciseError(
            f"after recovery the layers hold {held} experts, the plan keeps {counts}; nothing was written"
        )
