"""Observed criteria: pure functions Statistics -> scores [L, E], higher = keep (docs/methods.md 1.1).

X_e: the tokens routed to expert e, n_e of them. g: the gate weight that is applied. f: the expert's output
before it. T: tokens. A score without data (no token reached the expert) is nan, never 0.
"""

import numpy as np

from criteria.statistics import Statistics
from experts.arrays import Array
from experts.errors import ExciseError


def family(statistics: Statistics, alpha: int, beta: int, mean: bool) -> Array:
    """Return Σ_{X_e} g^α ‖f‖₂^β, or its mean over X_e.

    Source: https://arxiv.org/abs/2606.15716

    Args:
        statistics: of the text
        alpha: α in 0, 1, 2
        beta: β in 0, 1, 2
        mean: divide by n_e
    """
    sums = statistics.moments[..., alpha, beta]
    return divide(sums, statistics.count) if mean else np.where(statistics.unreached, np.nan, sums)


def utilization(statistics: Statistics) -> Array:
    """n_e / T: how often the expert is used.

    Sources: SEER-MoE, https://arxiv.org/abs/2404.05089; the baseline of REAP,
    https://arxiv.org/abs/2510.13999
    """
    share: Array = statistics.count / statistics.tokens.sum()
    return share


def routing_mass(statistics: Statistics) -> Array:
    """Σ_{X_e} g / T: a soft count, also called gating."""
    share: Array = statistics.moments[..., 1, 0] / statistics.tokens.sum()
    return share


def routing_weight(statistics: Statistics) -> Array:
    """mean_{X_e} g: the gate weight of an active expert.

    Source: https://arxiv.org/abs/2606.10703
    """
    return family(statistics, 1, 0, mean=True)


def activation_norm(statistics: Statistics) -> Array:
    """mean_{X_e} ‖f‖₂, also called MAN.

    Source: "activation norm" of https://arxiv.org/abs/2606.10703
    """
    return family(statistics, 0, 1, mean=True)


def activation_norm_sum(statistics: Statistics) -> Array:
    """Σ_{X_e} ‖f‖₂: EAN in the sense of REAP.

    Source: appendix D of https://arxiv.org/abs/2510.13999
    """
    return family(statistics, 0, 1, mean=False)


def activation_square(statistics: Statistics) -> Array:
    """mean_{X_e} ‖f‖₂², also called MSAN.

    Source: https://arxiv.org/abs/2606.15716
    """
    return family(statistics, 0, 2, mean=True)


def activation_std(statistics: Statistics) -> Array:
    """std_{X_e} ‖f‖₂ of the population (ddof 0).

    Source: https://arxiv.org/abs/2606.10703
    """
    mean, square = activation_norm(statistics), activation_square(statistics)
    return np.sqrt(np.maximum(square - mean**2, 0))


def reap(statistics: Statistics) -> Array:
    """mean_{X_e} g ‖f‖₂.

    Source: REAP, https://arxiv.org/abs/2510.13999
    """
    return family(statistics, 1, 1, mean=True)


def reap_sum(statistics: Statistics) -> Array:
    """Σ_{X_e} g ‖f‖₂: weighted EAN.

    Source: called REAP in https://arxiv.org/abs/2607.01444
    """
    return family(statistics, 1, 1, mean=False)


def easy_ep(statistics: Statistics) -> Array:
    """Σ_{X_e} g ‖f‖₂ · max(1 − cos(h, h + y), 0).

    h is the residual stream before the block, y the routed output.

    Source: EASY-EP, https://arxiv.org/abs/2504.06792

    Raises:
        ExciseError: the residual stream of this model cannot be seen.
    """
    if np.isnan(statistics.turning).any():
        raise ExciseError(
            "easy_ep: the residual stream cannot be compared with what the experts add to it: "
            "no norm feeds the MoE blocks of this model, or its experts work in a space of their own size"
        )
    return np.where(statistics.unreached, np.nan, statistics.turning)


def max_activation(statistics: Statistics) -> Array:
    """max |f| over X_e and all channels.

    Source: super experts, https://arxiv.org/abs/2507.23279
    """
    return np.where(statistics.unreached, np.nan, statistics.peak)


def specialization(statistics: Statistics) -> Array:
    """1 − H(p(d given e)) / log D, with p(d given e) ∝ the activation rate of e in domain d of D.

    Source: domain experts, https://arxiv.org/abs/2601.10159, whose formula is not public; this is a
    reconstruction.

    Raises:
        ExciseError: the text has one domain.
    """
    domains = len(statistics.tokens)
    if domains < 2:
        needs = "calibration.data needs sources with at least two `domain` labels, found one"
        raise ExciseError(f"specialization compares domains: {needs}")
    rate = statistics.by_domain / statistics.tokens
    share = divide(rate, rate.sum(axis=-1, keepdims=True))
    logs = np.log(np.where(share > 0, share, 1))
    entropy = -np.sum(np.where(share > 0, share * logs, 0), axis=-1)
    return np.where(statistics.unreached, np.nan, 1 - entropy / np.log(domains))


def router_norm(statistics: Statistics) -> Array:
    """‖router row‖₂; needs no text.

    Source: RWN of MC-Suite, https://arxiv.org/abs/2504.05586
    """
    return statistics.router_norm


def weight_norm(statistics: Statistics) -> Array:
    """The Frobenius norm of all matrices of the expert; needs no text."""
    return np.sqrt(statistics.weight_l2)


def aimer(statistics: Statistics) -> Array:
    """−(‖w‖₁/N) / √(‖w‖₂²/N), w the N weights of the expert; needs no text.

    Source: AIMER, https://arxiv.org/abs/2603.18492, which prunes the largest ratio
    """
    number = statistics.weight_count
    return -(statistics.weight_l1 / number) / np.sqrt(statistics.weight_l2 / number)


def divide(numerator: Array, denominator: Array) -> Array:
    """Return the quotient; nan where there is nothing to divide by."""
    safe = np.where(denominator > 0, denominator, 1)
    return np.where(denominator > 0, numerator / safe, np.nan)
