"""Sums over pairs of a token and an expert, expert by expert, the same from run to run on every device."""

import torch
from torch import Tensor


def add_by_expert(sums: Tensor, expert: Tensor, values: Tensor) -> None:
    """Add values to the sums of their experts, in float64.

    On GPUs `index_add_` adds in any order, and the last bit differs from run to run; there the values are put
    in the order of their experts, and segments are added up.

    Args:
        sums: changed in place [E, …]
        expert: id of each pair [S]
        values: of each pair [S, …]
    """
    if sums.device.type == "cpu":
        sums.index_add_(0, expert, values)
        return
    order = torch.argsort(expert, stable=True)
    lengths = torch.bincount(expert, minlength=len(sums))
    sums += torch.segment_reduce(values[order].contiguous(), "sum", lengths=lengths, axis=0, initial=0)
