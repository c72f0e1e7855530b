"""Scores of a search belong to the budget that it went down to; elsewhere they mean less, which is said."""

import json
from dataclasses import asdict

from criteria.budget import Budget
from criteria.criterion import Criterion
from experts.errors import ExciseError
from experts.shape import Shape


def elsewhere(criterion: Criterion, searched: Budget, budget: Budget, shape: Shape) -> str:
    """Say what scores of a search are worth at another budget; empty where they are worth the same.

    A greedy search removes one after another, so that it meets larger budgets of its scope on the way. What
    chooses a set, or weights of domains, chose them for its own budget alone.

    Args:
        criterion: whose scores they are
        searched: the budget that the search went down to
        budget: what they are used for
        shape: of the model
    """
    if searched.kept(shape) == budget.kept(shape):
        return ""
    if criterion.by_rounds and _on_the_way(searched, budget, shape.num_layers):
        return ""
    found = f"{criterion.name} was searched for {searched.text}; this plan ({budget.text}) takes its order"
    return f"{found}, and no search was made for it: score it again with that budget"


def _on_the_way(searched: Budget, budget: Budget, layers: int) -> bool:
    """Whether a greedy search goes past a budget before it comes to its own."""
    if searched.scope != budget.scope:
        return False
    if budget.scope == "global":
        return searched.total <= budget.total
    pairs = zip(searched.of_layers(layers), budget.of_layers(layers), strict=True)
    return all(fewer <= more for fewer, more in pairs)


def to_text(budget: Budget) -> str:
    """Return a budget as JSON, for the metadata of a file."""
    return json.dumps(asdict(budget))


def from_text(text: str, origin: str) -> Budget:
    """Return the budget of such a text.

    Args:
        text: JSON
        origin: the file, for messages

    Raises:
        ExciseError: it is none.
    """
    try:
        values = json.loads(text)
        counts = values.pop("counts")
        return Budget(**values, counts=None if counts is None else tuple(counts))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ExciseError(f"{origin}: not a score file (no budget: {text!r})") from error
