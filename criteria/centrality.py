"""Observed criteria from the graph of experts that are active together (docs/methods.md 1.1)."""

import numpy as np

from criteria.statistics import Statistics
from experts.arrays import Array
from experts.errors import ExciseError


def hub(statistics: Statistics) -> Array:
    """Eigenvector centrality in the graph C_ij = P(j active given i active), i ≠ j.

    x_j ∝ Σ_i x_i C_ij; the largest entry of a layer is 1. With exactly k active experts per token every row
    of C sums to k − 1, so C is a reversible random walk and its centrality is ∝ n_e: always the ranking of
    `utilization`.

    Source: the relational importance of INFORM, https://arxiv.org/abs/2602.04291, carried over to MoE layers
    """
    tokens = np.where(statistics.count > 0, statistics.count, 1)
    return _centrality(statistics, statistics.together / tokens[..., None])


def hub_joint(statistics: Statistics) -> Array:
    """Eigenvector centrality in the graph of joint activations P(i and j active), i ≠ j.

    The largest entry of a layer is 1. Unlike `hub` this is not frequency in disguise: an expert counts more
    when the experts it works with are themselves central.
    """
    return _centrality(statistics, statistics.together)


def _centrality(statistics: Statistics, graphs: Array) -> Array:
    """The leading left eigenvector of every layer's graph, over the experts that were reached [L, E].

    Where a graph falls apart into equal parts the eigenvector is not unique; real routing is connected.

    Args:
        statistics: which experts were reached
        graphs: weights of the edges i -> j; the diagonal does not count [L, E, E]
    """
    scores = np.full(statistics.count.shape, np.nan)
    for row, graph in enumerate(graphs):
        reached = ~statistics.unreached[row]
        edges = graph[np.ix_(reached, reached)] * (1 - np.eye(reached.sum()))
        if not edges.any():
            reason = "no two experts are active together (top-1 routing?)"
            raise ExciseError(f"hub, hub_joint: {reason}, so there is no graph to rank them by")
        values, vectors = np.linalg.eig(edges.T)
        leading = np.abs(vectors[:, np.argmax(values.real)].real)
        scores[row, reached] = leading / max(leading.max(), np.finfo(float).tiny)
    return scores
