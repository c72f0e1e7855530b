"""In which order the experts of a layer are removed: by criteria, by their reverse, and at random."""

from collections.abc import Mapping, Sequence

import numpy as np

from experts.arrays import Array, Ids

Order = Ids  # expert ids, the first to be removed in front


def orders_of(
    scores: Mapping[str, Array], num_experts: int, draws: int, seed: Sequence[int]
) -> dict[str, Order]:
    """Return in which order the experts of a layer go: by every criterion, by its reverse, and at random.

    Args:
        scores: scores of the layer's experts by criterion [E]. The lowest goes first; an expert without score
            (nan) goes before it, and last when reversed. Ties go by id.
        num_experts: E
        draws: random orders
        seed: of the random orders

    Returns:
        Orders [E] by name: "<criterion>", "reversed:<criterion>", "random <number>".
    """
    orders: dict[str, Order] = {}
    for name, values in scores.items():
        order = np.argsort(np.where(np.isnan(values), -np.inf, values), kind="stable")
        orders[name] = order
        orders[f"reversed:{name}"] = order[::-1].copy()
    rng = np.random.default_rng(seed)
    for draw in range(draws):
        orders[f"random {draw}"] = rng.permutation(num_experts)
    return orders
