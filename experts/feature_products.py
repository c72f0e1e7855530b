"""Products of the features of experts, over the tokens that two of them share; all others are 0."""

from collections.abc import Sequence

import torch
from torch import Tensor

from experts.inner_activations import Features


def add_gram(gram: Tensor, features: Sequence[Features], tokens: int) -> None:
    """Add ZᵀZ, in the precision of `gram`.

    Args:
        gram: the sum so far [n·I, n·I]
        features: of n experts
        tokens: T
    """
    inner = len(gram) // len(features)
    values = [own.values.to(gram.dtype) for own in features]
    for expert, own in enumerate(features):
        place = torch.full((tokens,), -1, dtype=torch.int64, device=gram.device)
        place[own.tokens] = torch.arange(len(own.tokens), device=gram.device)
        for other in range(expert, len(features)):
            of_other = place[features[other].tokens]
            shared = of_other >= 0
            product = values[expert][of_other[shared]].T @ values[other][shared]
            rows, columns = _unknowns(expert, inner), _unknowns(other, inner)
            gram[rows, columns] += product
            if other != expert:
                gram[columns, rows] += product.T


def add_right(right: Tensor, features: Sequence[Features], lacking: Tensor) -> None:
    """Add ZᵀE, in the precision of `right`.

    Args:
        right: the sum so far [n·I, H]
        features: of n experts
        lacking: E [T, H]
    """
    inner = len(right) // len(features)
    for expert, own in enumerate(features):
        right[_unknowns(expert, inner)] += own.values.to(right.dtype).T @ lacking[own.tokens].to(right.dtype)


def _unknowns(expert: int, inner: int) -> slice:
    return slice(expert * inner, (expert + 1) * inner)
