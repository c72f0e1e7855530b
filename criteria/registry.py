"""Every criterion is a row of this table.

Baselines are rows like any other, so no report can leave them out.
"""

import numpy as np

from criteria import centrality, formulas, razor
from criteria.criterion import (
    ACTIVATIONS,
    DOMAINS,
    GRADIENTS,
    INTERVENTIONS,
    NOTHING,
    TEXT,
    Criterion,
    arxiv,
    from_weights,
    measured,
    observed,
)
from criteria.experiment import (
    FISHER,
    FISHER_PAIRS,
    GRADIENT,
    GRAM,
    GREEDY,
    HOPE,
    INTEGRATED,
    LEARNED_MASK,
    MAX_MIN,
    POSITION,
    RECON,
    REFIT_RESIDUAL,
    REMOVAL,
    SWAPS,
)
from criteria.statistics import Statistics
from experts.arrays import Array


def random_scores(statistics: Statistics, seed: int = 0) -> Array:
    """Return uniform scores in [0, 1) [L, E], the baseline every criterion must beat."""
    return np.random.default_rng([20061117, seed]).random(statistics.count.shape)


ROWS = (
    observed(
        "utilization", formulas.utilization, formula="n_e / T", source=arxiv("2404.05089", "2510.13999")
    ),
    observed("routing_mass", formulas.routing_mass, formula="Σ g / T", source="soft count"),
    observed("routing_weight", formulas.routing_weight, formula="mean g", source=arxiv("2606.10703")),
    observed("activation_norm", formulas.activation_norm, formula="mean ‖f‖", source=arxiv("2606.10703")),
    observed(
        "activation_norm_sum",
        formulas.activation_norm_sum,
        formula="Σ ‖f‖",
        source=f"{arxiv('2510.13999')} App. D",
    ),
    observed(
        "activation_square", formulas.activation_square, formula="mean ‖f‖²", source=arxiv("2606.15716")
    ),
    observed("activation_std", formulas.activation_std, formula="std ‖f‖", source=arxiv("2606.10703")),
    observed("reap", formulas.reap, formula="mean g·‖f‖", source=arxiv("2510.13999")),
    observed("reap_sum", formulas.reap_sum, formula="Σ g·‖f‖", source=arxiv("2607.01444")),
    observed(
        "easy_ep", formulas.easy_ep, formula="Σ g·‖f‖·max(1 − cos(h, h + y), 0)", source=arxiv("2504.06792")
    ),
    observed("max_activation", formulas.max_activation, formula="max |f|", source=arxiv("2507.23279")),
    observed(
        "hub",
        centrality.hub,
        formula="eigenvector centrality of P(j active | i active) ∝ n_e",
        source=arxiv("2602.04291"),
    ),
    observed(
        "hub_joint",
        centrality.hub_joint,
        formula="eigenvector centrality of P(i and j active)",
        source="variant of hub",
    ),
    observed(
        "specialization",
        formulas.specialization,
        formula="1 − H(p(d|e)) / log D",
        needs=DOMAINS,
        source=arxiv("2601.10159"),
    ),
    razor.ROW,
    from_weights("router_norm", formulas.router_norm, formula="‖router row‖", source=arxiv("2504.05586")),
    from_weights("weight_norm", formulas.weight_norm, formula="‖w‖ (Frobenius)", source="classic"),
    from_weights("aimer", formulas.aimer, formula="−(‖w‖₁/N) / √(‖w‖₂²/N)", source=arxiv("2603.18492")),
    measured(
        "gradient",
        GRADIENT,
        part="gradient",
        formula="−∂L/∂α (α: multiplier of g, L: mean CE)",
        needs=GRADIENTS,
        cost=3.4,
        source=arxiv("2602.04291", "2403.00745"),
    ),
    measured(
        "gradient_abs",
        GRADIENT,
        part="gradient_abs",
        formula="Σ |g f·∂L/∂y| / T",
        needs=GRADIENTS,
        cost=3.4,
        source=arxiv("2602.04291", "2403.00745"),
    ),
    measured(
        "fisher",
        FISHER,
        part="fisher",
        formula="Σ (∂L_t/∂α)²",
        needs=GRADIENTS,
        cost=5.2,
        grows="probes",
        source="empirical Fisher",
    ),
    measured(
        "integrated",
        INTEGRATED,
        part="integrated",
        formula="−∫ ∂L/∂α dα, all α from 1 to 0",
        needs=GRADIENTS,
        cost=18.0,
        grows="steps",
        source=arxiv("1703.01365"),
    ),
    measured(
        "causal_position",
        POSITION,
        part="score",
        formula="Σ_t ΔCE_t / T, e removed at t alone",
        needs=INTERVENTIONS,
        cost=20.0,
        grows="L·k",
        source=arxiv("2606.10703"),
    ),
    measured(
        "causal_removal",
        REMOVAL,
        part="score",
        formula="mean ΔCE, e removed everywhere",
        needs=INTERVENTIONS,
        cost=50.0,
        grows="L·E",
        source="leave one out",
    ),
    measured(
        "causal_greedy",
        GREEDY,
        part="score",
        formula="order of removal by ΔCE given the earlier ones",
        needs=INTERVENTIONS,
        cost=360.0,
        grows="L·E·rounds",
        source=arxiv("2607.01940"),
    ),
    measured(
        "causal_swaps",
        SWAPS,
        part="score",
        formula="min KL(unpruned ‖ pruned), swaps accepted where it falls in both halves of the text",
        needs=INTERVENTIONS,
        cost=360.0,
        grows="L·shortlist·passes",
        source="local search, ours",
    ),
    measured(
        "refit_residual",
        REFIT_RESIDUAL,
        part="score",
        formula="what a refit of the others leaves of the output, e removed after the earlier ones",
        needs=ACTIVATIONS,
        cost=4.0,
        grows="L",
        source="backward elimination",
    ),
    measured(
        "max_min",
        MAX_MIN,
        part="score",
        formula="Σ_d λ_d s_d / M_d, λ for the largest smallest coverage over domains d",
        needs=DOMAINS,
        cost=0.0,
        source=arxiv("2609.04453"),
    ),
    measured(
        "hope",
        HOPE,
        part="score",
        formula="min pᵀFp, F_ij = mean over t of g_i‖f_i‖·g_j‖f_j‖, both active; p = 1 on removed",
        needs=TEXT,
        cost=0.1,
        source=arxiv("2609.18916"),
    ),
    measured(
        "gram",
        GRAM,
        part="score",
        formula="min pᵀGp, G_ij = Σ_t g_i g_j⟨f_i, f_j⟩ / T; p = 1 on removed",
        needs=TEXT,
        cost=0.1,
        source="mean squared change of y in mode zero",
    ),
    measured(
        "fisher_pairs",
        FISHER_PAIRS,
        part="score",
        formula="min pᵀFp, F_ij = Σ_t s_i s_j / T over all layers, s = g f·∂L/∂y of sampled labels",
        needs=GRADIENTS,
        cost=2.5,
        grows="draws",
        source="Fisher information, pairs included",
    ),
    measured(
        "recon",
        RECON,
        part="score",
        formula="min Σ_l σ_l² mean ‖y_l(kept) − y_l‖², re-routed at clean inputs, 8 projections of y",
        needs=INTERVENTIONS,
        cost=2.7,
        grows="E",
        source="reconstruction of the routed outputs",
    ),
    measured(
        "learned_mask",
        LEARNED_MASK,
        part="score",
        formula="min KL(unpruned ‖ pruned) over survival logits, exact budget, straight-through",
        needs=GRADIENTS,
        cost=130.0,
        grows="updates",
        source=arxiv("2605.00649"),
    ),
    Criterion(
        "random",
        random_scores,
        formula="uniform, seeded",
        needs=NOTHING,
        cost=0.0,
        source="baseline",
    ),
)
CRITERIA: dict[str, Criterion] = {row.name: row for row in ROWS}
