"""Experiments on the loaded model: EXPERIMENTS alone says which function belongs to which kind."""

from collections.abc import Callable, Mapping

from criteria import (
    causal,
    fisher_pairs,
    gradient,
    greedy,
    learned_mask,
    max_min,
    pairs,
    recon,
    refit_residual,
    swaps,
)
from criteria.experiment import Measurement
from criteria.experiment_context import ExperimentContext
from experts.arrays import Array

EXPERIMENTS: Mapping[str, Callable[..., dict[str, Array]]] = {
    "position": causal.position,
    "removal": causal.removal,
    "greedy": greedy.greedy,
    "max_min": max_min.max_min,
    "gradient": gradient.first_order,
    "fisher": gradient.fisher,
    "integrated": gradient.integrated,
    "refit_residual": refit_residual.refit_residual,
    "hope": pairs.hope,
    "gram": pairs.gram,
    "pair_slopes": fisher_pairs.slope_products,
    "learned_mask": learned_mask.learned_mask,
    "causal_swaps": swaps.swaps,
    "recon": recon.recon,
    "fisher_pairs": fisher_pairs.fisher_pairs,
}


def measure(measurement: Measurement, context: ExperimentContext) -> dict[str, Array]:
    """Run an experiment on the loaded model.

    Returns:
        Its results by name: scores [L, E], and raw rows with more axes.
    """
    return EXPERIMENTS[measurement.kind](context, **measurement.values)
