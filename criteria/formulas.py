"""Observational scores, METHODS section by section: pure functions Statistics -> [L, E] float64, higher = more important = keep.

X_e = tokens routed to e, n_e = |X_e|, g = gate weight that is really applied, f = expert output before it, T = tokens. Where a
score has no data (no token reached the expert) it is nan, never 0.
"""

import numpy as np

from criteria.statistics import Statistics
from experts.arrays import Array
from experts.errors import ExciseError

FEWEST = 200  # experts of a model from which one of them is at most 0.5 %


def family(statistics: Statistics, alpha: int, beta: int, mean: bool) -> Array:
    """(1/n_e^b) Σ_{X_e} g^α ‖f‖₂^β with b = 1 (mean) or 0 (sum), α, β in {0, 1, 2}. Source: arXiv 2606.15716."""
    sums = statistics.moments[..., alpha, beta]
    return _divide(sums, statistics.count) if mean else np.where(statistics.unreached, np.nan, sums)


def utilization(statistics: Statistics) -> Array:
    """n_e / T. Frequency: SEER-MoE (arXiv 2404.05089), REAP's baseline (arXiv 2510.13999)."""
    share: Array = statistics.count / statistics.tokens.sum()
    return share


def routing_mass(statistics: Statistics) -> Array:
    """Σ_{X_e} g / T. Soft count, "gating"."""
    share: Array = statistics.moments[..., 1, 0] / statistics.tokens.sum()
    return share


def routing_weight(statistics: Statistics) -> Array:
    """mean_{X_e} g. Mean routing weight when active (arXiv 2606.10703)."""
    return family(statistics, 1, 0, mean=True)


def activation_norm(statistics: Statistics) -> Array:
    """mean_{X_e} ‖f‖₂. MAN; "activation norm" of arXiv 2606.10703."""
    return family(statistics, 0, 1, mean=True)


def activation_norm_sum(statistics: Statistics) -> Array:
    """Σ_{X_e} ‖f‖₂. EAN in the sense of REAP (arXiv 2510.13999, App. D)."""
    return family(statistics, 0, 1, mean=False)


def activation_square(statistics: Statistics) -> Array:
    """mean_{X_e} ‖f‖₂². MSAN (arXiv 2606.15716)."""
    return family(statistics, 0, 2, mean=True)


def activation_std(statistics: Statistics) -> Array:
    """std_{X_e} ‖f‖₂, population (ddof 0). arXiv 2606.10703."""
    mean, square = activation_norm(statistics), activation_square(statistics)
    return np.sqrt(np.maximum(square - mean**2, 0))


def reap(statistics: Statistics) -> Array:
    """mean_{X_e} g ‖f‖₂. REAP (arXiv 2510.13999)."""
    return family(statistics, 1, 1, mean=True)


def reap_sum(statistics: Statistics) -> Array:
    """Σ_{X_e} g ‖f‖₂. Weighted EAN; called "REAP" in arXiv 2607.01444."""
    return family(statistics, 1, 1, mean=False)


def easy_ep(statistics: Statistics) -> Array:
    """Σ_{X_e} g ‖f‖₂ · max(1 − cos(h, h + y), 0), h = residual stream before the block, y = routed output. EASY-EP (arXiv 2504.06792)."""
    if np.isnan(statistics.turning).any():
        raise ExciseError(
            "easy_ep: the residual stream cannot be compared with what the experts give: no norm feeds the MoE blocks of this model, or "
            "its experts work in a space of their own size"
        )
    return np.where(statistics.unreached, np.nan, statistics.turning)


def max_activation(statistics: Statistics) -> Array:
    """max over X_e and channels of |f|. Super experts (arXiv 2507.23279)."""
    return np.where(statistics.unreached, np.nan, statistics.peak)


def router_norm(statistics: Statistics) -> Array:
    """‖router row‖₂. RWN of MC-Suite (arXiv 2504.05586). No data."""
    return statistics.router_norm


def weight_norm(statistics: Statistics) -> Array:
    """Frobenius norm of all matrices of the expert. No data."""
    return np.sqrt(statistics.weight_l2)


def aimer(statistics: Statistics) -> Array:
    """−(‖w‖₁/N) / √(‖w‖₂²/N), w = the N weights of the expert; AIMER prunes the largest ratio. arXiv 2603.18492. No data."""
    n = statistics.weight_count
    return -(statistics.weight_l1 / n) / np.sqrt(statistics.weight_l2 / n)


def hub(statistics: Statistics) -> Array:
    """Eigenvector centrality in the graph C_ij = P(j active given i active), i ≠ j: x_j ∝ Σ_i x_i C_ij. Largest entry of a layer 1.

    The relational importance of INFORM (arXiv 2602.04291), carried over to MoE layers. With exactly k active experts per token every
    row of C sums to k − 1, so C is a reversible random walk and its centrality is n_e: the ranking of `utilization`, always.
    """
    return _centrality(
        statistics, statistics.together / np.where(statistics.count > 0, statistics.count, 1)[..., None]
    )


def hub_joint(statistics: Statistics) -> Array:
    """Eigenvector centrality in the graph of joint activations P(i and j active), i ≠ j. Largest entry of a layer 1.

    Unlike `hub` this is not frequency in disguise: an expert counts more when the experts it works with are themselves central.
    """
    return _centrality(statistics, statistics.together)


def _centrality(statistics: Statistics, graphs: Array) -> Array:
    """Leading left eigenvector of every layer's graph [L, E, E] without its diagonal, over the experts that were reached.

    Where the graph falls apart into equal parts the eigenvector is not unique; real routing is connected.
    """
    scores = np.full(statistics.count.shape, np.nan)
    for layer, graph in enumerate(graphs):
        reached = ~statistics.unreached[layer]
        edges = graph[np.ix_(reached, reached)] * (1 - np.eye(reached.sum()))
        if not edges.any():
            raise ExciseError(
                "hub, hub_joint: no two experts are active together (top-1 routing?), so there is no graph to rank them by"
            )
        values, vectors = np.linalg.eig(edges.T)
        leading = np.abs(vectors[:, np.argmax(values.real)].real)
        scores[layer, reached] = leading / max(leading.max(), np.finfo(float).tiny)
    return scores


def specialization(statistics: Statistics) -> Array:
    """1 − H(p(d given e)) / log D, p(d given e) ∝ activation rate of e in domain d. Domain experts (arXiv 2601.10159), a reconstruction."""
    domains = len(statistics.tokens)
    if domains < 2:
        raise ExciseError(
            "specialization compares domains: calibration.data needs sources with at least two `domain` labels, found one"
        )
    rate = statistics.by_domain / statistics.tokens
    share = _divide(rate, rate.sum(axis=-1, keepdims=True))
    entropy = -np.sum(np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0), axis=-1)
    return np.where(statistics.unreached, np.nan, 1 - entropy / np.log(domains))


def protects(setting: bool | str, experts: int) -> bool:
    """Whether super experts are looked for. experts: L·E; setting: True, False or "auto".

    Above the 99.5th percentile are the ⌈(L·E − 1) / 200⌉ largest activations, whatever they are: it interpolates,
    so there always is one. Below FEWEST experts that one is more than the 0.5 % the rule means, and `auto`
    leaves it alone.
    """
    return experts >= FEWEST if setting == "auto" else bool(setting)


def super_experts(statistics: Statistics) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Experts to protect [L, E]: a > P99.5 of all a, and a > a_max / 10, and the layer is among the first 75 %; a = max activation.

    Source: arXiv 2507.23279.
    """
    a = statistics.peak
    early = np.arange(len(a))[:, None] < 0.75 * len(a)
    found: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (
        (a > np.percentile(a, 99.5)) & (a > a.max() / 10) & early
    )
    return found


def _divide(numerator: Array, denominator: Array) -> Array:
    """Quotient; nan where there is nothing to divide by."""
    safe = np.where(denominator > 0, denominator, 1)
    return np.where(denominator > 0, numerator / safe, np.nan)
