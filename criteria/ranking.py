"""Score experts and select a plan: what users call, and what every command calls."""

from collections.abc import Iterable, Mapping
from typing import get_args, overload

from criteria.budget import Budget, BudgetScope
from criteria.budget_request import budget_for
from criteria.by_name import resolve
from criteria.calibration import Calibration
from criteria.criterion import Criterion
from criteria.protection import Protection
from criteria.scores import Scores
from criteria.searched import elsewhere
from criteria.selection import plan_for
from criteria.text.windows import Windows, check_windows
from experts.arguments import check_choice, check_count, check_kind
from experts.errors import ExciseError
from experts.model import Model, check_model
from experts.notes import tell
from experts.plan import Plan


@overload
def score(
    model: Model,
    criterion: str,
    text: Windows | Calibration,
    *,
    budget: Budget | None = None,
    batch: int = 8,
    protect: Protection = "auto",
) -> Scores: ...


@overload
def score(
    model: Model,
    criterion: list[str] | tuple[str | Criterion, ...],
    text: Windows | Calibration,
    *,
    budget: Budget | None = None,
    batch: int = 8,
    protect: Protection = "auto",
) -> list[Scores]: ...


def score(
    model: Model,
    criterion: str | list[str] | tuple[str | Criterion, ...],
    text: Windows | Calibration,
    *,
    budget: Budget | None = None,
    batch: int = 8,
    protect: Protection = "auto",
) -> Scores | list[Scores]:
    """Score every expert by a criterion; higher = keep.

    One forward pass over the text serves all criteria; criteria that measure removals or gradients run their
    experiment besides. `excise criteria` lists the names, with formula, cost and source.

    Args:
        model: a loaded model
        criterion: a name with its settings (reap, causal_removal:outcome=kl, file.py:function), or several
        text: calibration windows; or a `criteria.calibration.Calibration` of them, which keeps what it
            measured for the next call and has its own `batch` and `protect`
        budget: what a criterion that searches prunes down to, of `criteria.budget_for`
        batch: windows per forward; changes memory and speed only
        protect: keep experts with outlier activations in every plan (arXiv 2507.23279);
            auto = in models of 200 experts and more

    Returns:
        Scores [L, E]; a list of them for several names. They know the model and the text, so that a plan of
        theirs is not tested on it.

    Raises:
        ExciseError: the criterion is unknown, needs a budget, or returned something else than a finite number
            per expert.

    Example:
        >>> import criteria, experts
        >>> model = experts.load("demo")
        >>> text = criteria.windows(model, stdlib="code", split="calibration", sequences=4, length=64)
        >>> criteria.score(model, "reap", text).values.shape
        (6, 16)
    """
    check_model(model)
    if budget is not None:
        check_kind("budget", budget, Budget, "a budget of criteria.budget_for")
    calibration = text if isinstance(text, Calibration) else _calibration(model, text, batch, protect)
    rows = _rows([criterion] if isinstance(criterion, str) else criterion)
    scores = calibration.scores(rows, budget)
    return scores[0] if isinstance(criterion, str) else scores


def _calibration(model: Model, text: Windows, batch: int, protect: Protection) -> Calibration:
    check_windows("text", text)
    check_count("batch", batch)
    check_choice("protect", protect, get_args(Protection))
    return Calibration(model, text, batch=batch, protect=protect)


def _rows(criteria: Iterable[str | Criterion]) -> list[Criterion]:
    """The criteria of these names."""
    check_kind("criterion", criteria, Iterable, "the name of a criterion, or a list of names")
    rows = []
    for criterion in criteria:
        if isinstance(criterion, Criterion):
            rows.append(criterion)
        else:
            check_kind("criterion", criterion, str, "the name of a criterion")
            rows.append(resolve(criterion))
    return rows


def select(
    scores: Scores,
    *,
    fraction: float | None = None,
    keep: int | Mapping[int, int] | None = None,
    target_size: str | None = None,
    scope: BudgetScope = "layer",
    floor: int | None = None,
    multiple_of: int = 1,
    budget: Budget | None = None,
) -> Plan:
    """Select the experts to keep: the highest scores within a budget.

    Give exactly one of `fraction`, `keep`, `target_size` and `budget`.

    Scores of a criterion that searches belong to the budget that they were made for. At another one the
    plan takes their order, with a note; larger budgets of `causal_greedy` are met on its way.

    Args:
        scores: of `criteria.score`
        fraction: share of the experts to remove, in (0, 1)
        keep: experts kept per layer (on average, in scope global), or decoder layer -> count for some layers
        target_size: largest size of all weights together, for example 8GB
        scope: layer = the same count in every layer; global = the lowest scores of the whole model go
        floor: fewest experts a layer keeps, in scope global; by default as few as can route
        multiple_of: every layer's count is a multiple of it
        budget: all of these in one, of `criteria.budget_for`

    Returns:
        The plan. It knows its reverse, its protected experts and the calibration text, which
        `validate.against_random` uses.

    Raises:
        ExciseError: the budget is impossible for this model; the message has the numbers and the way out.

    Example:
        >>> import criteria, experts
        >>> model = experts.load("demo")
        >>> text = criteria.windows(model, stdlib="code", split="calibration", sequences=4, length=64)
        >>> plan = criteria.select(criteria.score(model, "reap", text), fraction=0.5)
        >>> plan.total, plan.uniform
        (48, True)
    """
    check_kind("scores", scores, Scores, "the scores of one criterion, of criteria.score")
    if scores.layout is None:
        way_out = "make them with criteria.score or criteria.Scores.read, not by hand"
        raise ExciseError(f"these scores know no model: {way_out}")
    if budget is None:
        budget = budget_for(
            scores.layout,
            fraction=fraction,
            keep=keep,
            target_size=target_size,
            scope=scope,
            floor=floor,
            multiple_of=multiple_of,
        )
    else:
        _check_alone(budget, fraction, keep, target_size)
    shape = scores.layout.shape
    plan = plan_for(scores, budget, shape)
    if scores.searched and (note := elsewhere(resolve(scores.criterion), scores.searched, budget, shape)):
        tell(note)
    return plan


def _check_alone(budget: object, *others: object) -> None:
    check_kind("budget", budget, Budget, "a budget of criteria.budget_for")
    if any(other is not None for other in others):
        raise ExciseError("give a budget, or one of fraction, keep, target_size, not both")
