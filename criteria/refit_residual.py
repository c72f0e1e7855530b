"""The criterion of what a refit leaves: experts go by greedy backward elimination, one layer at a time.

Its question is another one than that of a score per expert: not what an expert gives, but what of it the
others cannot give once their down projections are refitted (docs/methods.md, 9).
"""

import numpy as np
import torch
from tqdm import tqdm

from criteria.elimination.calls import Call, calls
from criteria.elimination.search import LayerSearch
from criteria.experiment_context import ExperimentContext
from experts.arrays import Array
from experts.errors import ExciseError
from experts.inner_activations import check_inner


@torch.no_grad()
def refit_residual(context: ExperimentContext, tokens: int, rerouted: int, windows: int) -> dict[str, Array]:
    """Remove experts of every layer, each time the one after which a refit of the others leaves least.

    refit_residual: J after the removal of e, J = min_X ‖E − Z X‖² + λ̄‖X‖², relative to the square of the
    residual stream after the layer; Z [T, n·I] are the features of the n experts that are left, E what their
    output lacks, λ = .1. Layers are looked at on their own, at the clean stream, without damage from below.

    With rerouted=0 features are those of the unpruned routing: tokens of a removed expert go nowhere. All
    updates are exact then. With rerouted=m the m cheapest candidates by these updates are routed again and
    solved anew, and the best of them goes. Source: this project.

    Args:
        context: model and text
        tokens: T, evenly spread; 0 = all
        rerouted: m
        windows: how many windows are used; 0 = all

    Returns:
        `score` [L, E]: it grows along the order of removal, so that one search serves every budget.

    Raises:
        ExciseError: inner activations cannot be seen, or a block cannot be routed again.
    """
    anatomy, text = context.anatomy, context.tokens(windows)
    stored = context.partial.read().get("score")
    score: Array = np.full((anatomy.shape.num_layers, anatomy.shape.num_experts), np.nan)
    score = score if stored is None else stored
    with tqdm(total=len(score), desc="refit residual", unit="layer", delay=2, leave=False) as bar:
        for row, call in calls(anatomy, text, tokens, context.batch):
            if np.isnan(score[row]).any():
                score[row] = _of_layer(context, row, call, rerouted)
                context.partial.write({"score": score})
            bar.update(1)
    return {"score": score}


def _of_layer(context: ExperimentContext, row: int, call: Call, rerouted: int) -> Array:
    """Scores of a layer [E]."""
    layer = context.anatomy.layers[row]
    try:
        check_inner(layer.experts)
    except ExciseError as error:
        raise ExciseError(f"refit_residual: {layer.name}: {error}") from error
    objective = LayerSearch(context.anatomy, row, call, rerouted).run()
    square = float(call.stream.double().square().sum())
    return growing(objective, context.shape.smallest, square)


def growing(objective: dict[int, float], last: int, square: float) -> Array:
    """Scores from J after every removal, in the order of removal; those that stay last are compared among
    themselves.

    Args:
        objective: J by expert
        last: how many at the end were not removed
        square: what J is relative to
    """
    gone = list(objective)[: len(objective) - last]
    stay = sorted(list(objective)[len(gone) :], key=lambda expert: objective[expert])
    scores: Array = np.zeros(len(objective))
    before = 0.0
    for expert in (*gone, *stay):
        # A removal after re-routing may leave less than the one before: the order counts, not the step.
        before = max(objective[expert] / square, np.nextafter(before, np.inf))
        scores[expert] = before
    return scores
