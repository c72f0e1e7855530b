"""Searches of a comparison: one in every scope, down to its smallest budget."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from criteria.budget import Budget, deepest
from criteria.criterion import Criterion
from criteria.scores import Scores
from prune.session.session import Session


def search_notes(criteria: Iterable[Criterion], budgets: Sequence[Budget]) -> list[str]:
    """What plans of the larger budgets are, of criteria that choose for one budget."""
    chosen = [criterion.name for criterion in criteria if criterion.searches and not criterion.by_rounds]
    ends = deepest(budgets)
    if not chosen or len(ends) == len(budgets):
        return []
    smallest = ", ".join(budget.text for budget in ends.values())
    what = f"searched for the smallest budget of a scope alone ({smallest})"
    return [f"{', '.join(chosen)}: {what}; plans of larger ones take that order, no search is made for them"]


def scores_of(session: Session, budget: Budget) -> list[Scores]:
    """Of every criterion, for all budgets of a scope: what `search_notes` says is not said of every plan."""
    return [replace(scores, searched=None) for scores in session.scores(budget)]
