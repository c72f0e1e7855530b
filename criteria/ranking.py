"""Score experts and select a plan: what users call, and what every command is built on."""

from collections.abc import Mapping
from typing import overload

from criteria.budget import Budget, BudgetScope
from criteria.budget_for import budget_for
from criteria.by_name import resolve
from criteria.calibration import Calibration
from criteria.protection import Protection
from criteria.scores import Scores
from criteria.selection import plan_for
from criteria.text.windows import Windows
from experts.errors import ExciseError
from experts.model import Model
from experts.plan import Plan


@overload
def score(
    model: Model,
    criterion: str,
    text: Windows,
    *,
    budget: Budget | None = None,
    batch: int = 8,
    protect: Protection = "auto",
) -> Scores: ...


@overload
def score(
    model: Model,
    criterion: list[str] | tuple[str, ...],
    text: Windows,
    *,
    budget: Budget | None = None,
    batch: int = 8,
    protect: Protection = "auto",
) -> list[Scores]: ...


def score(
    model: Model,
    criterion: str | list[str] | tuple[str, ...],
    text: Windows,
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
        text: calibration windows
        budget: what a criterion that searches prunes down to (`criteria.budget_for.budget_for`)
        batch: windows per forward; changes memory and speed only
        protect: keep experts with outlier activations in every plan (arXiv 2507.23279);
            auto = in models of 200 experts and more

    Returns:
        Scores [L, E]; a list of them for several names.

    Raises:
        ExciseError: the criterion is unknown, or returned something else than a finite number per expert.

    Example:
        >>> import criteria, experts
        >>> model = experts.load("demo")
        >>> text = criteria.windows(model, stdlib="code", split="calibration", sequences=4, length=64)
        >>> criteria.score(model, "reap", text).values.shape
        (6, 16)
    """
    names = [criterion] if isinstance(criterion, str) else list(criterion)
    calibration = Calibration(model, text, batch=batch, protect=protect)
    scores = calibration.scores([resolve(name) for name in names], budget)
    return scores[0] if isinstance(criterion, str) else scores


def select(
    scores: Scores,
    *,
    fraction: float | None = None,
    keep: int | Mapping[int, int] | None = None,
    target_size: str | None = None,
    scope: BudgetScope = "layer",
    floor: int | None = None,
    multiple_of: int = 1,
) -> Plan:
    """Select the experts to keep: the highest scores within a budget.

    Give exactly one of `fraction`, `keep` and `target_size`.

    Args:
        scores: of `criteria.score`
        fraction: share of the experts to remove, in (0, 1)
        keep: experts kept per layer (on average, in scope global), or decoder layer -> count for some layers
        target_size: largest size of all weights together, for example 8GB
        scope: layer = the same count in every layer; global = the lowest scores of the whole model go
        floor: fewest experts a layer keeps, in scope global; by default as few as can route
        multiple_of: every layer's count is a multiple of it

    Returns:
        The plan. It knows its reverse and its protected experts, which `validate.against_random` uses.

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
    if scores.layout is None:
        raise ExciseError("these scores know no model: make them with criteria.score, not by hand")
    budget = budget_for(
        scores.layout,
        fraction=fraction,
        keep=keep,
        target_size=target_size,
        scope=scope,
        floor=floor,
        multiple_of=multiple_of,
    )
    return plan_for(scores, budget, scores.layout.shape)
