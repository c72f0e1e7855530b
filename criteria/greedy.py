"""Greedy removal: after every round the effects of what is left are measured again.

A single removal is blind to experts that back each other up: each alone is cheap, both together are not. Here
the effect of an expert is what its removal adds to the cost of everything that was removed before, in mode
reroute, on the whole calibration text. Source: CoAx, https://arxiv.org/abs/2607.01940
"""

import numpy as np

from criteria.experiment_context import ExperimentContext
from criteria.greedy_search import Search
from experts.arrays import Array
from experts.errors import ExciseError
from experts.sweep.progress import bar_around_sweeps

# Raise when a search finds something else from the same inputs: results of an older one are then not used.
VERSION = 2


def greedy(
    context: ExperimentContext,
    step: int,
    rounds: int,
    shortlist: int,
    outcome: str,
    start: str,
    windows: int,
) -> dict[str, Array]:
    """Remove experts down to the budget, the cheapest given the earlier ones first.

    causal_greedy: the place of an expert in the order of removal. Costs 360 plain forwards on the demo
    (L, E, k = 6, 16, 4) and grows with L·E·rounds.

    Args:
        context: model, text and budget
        step: experts removed per round: of every layer in scope layer, of the model in scope global
        rounds: rounds to the budget, instead of `step`; 0 = as many as step needs
        shortlist: candidates measured per round, likewise; 0 = all
        outcome: loss = ΔCE, kl = KL(unpruned ‖ pruned)
        start: criterion of the first estimates
        windows: how many windows are used; 0 = all

    Returns:
        `score` [L, E]: place in the order of removal; kept experts come last, by their estimate.
        `trace` [removals, 4]: row of the layer, expert, round, cost it added in nats per token.

    Raises:
        ExciseError: the budget cannot be reached.
    """
    if step < 1:
        raise ExciseError(f"causal_greedy: step is {step}; every round removes at least one expert")
    search = Search(context, windows, outcome, start)
    size = step if rounds == 0 else search.share(rounds)
    with bar_around_sweeps(context.anatomy, "greedy removal", "expert", search.left()) as bar:
        while left := search.left():
            search.round(size, shortlist)
            bar.update(left - search.left())
    return {"score": search.score(), "trace": np.array(search.trace)}
