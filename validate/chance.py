"""Does a plan beat chance? A plan against random plans of its own sizes, on held-out text."""

from criteria.text.windows import Windows
from experts.errors import ExciseError
from experts.model import Model
from experts.plan import Plan
from experts.shape import Shape
from validate.draw import equal_plans, random_plans
from validate.evidence import Evidence, Judged
from validate.measure import LOSS, Measure
from validate.null import Contest, evidence_of, with_verdicts
from validate.rig import check_rig
from validate.rows import LossEvaluator
from validate.statistics import Correction
from validate.verdict import Null


def against_random(
    model: Model,
    plan: Plan,
    text: Windows,
    *,
    plans: int = 20,
    seed: int = 0,
    chance: Null | str = Null.COUNTED,
    batch: int = 8,
) -> Evidence[Judged]:
    """Test a plan against random plans that keep as many experts in every layer and router group.

    The instrument is checked first (`validate.rig`). Then the loss of every plan is measured on every window.
    The text must not be the one that the scores were made from.

    Args:
        model: a loaded model
        plan: of `criteria.select`, or made by hand
        text: held-out windows
        plans: R, number of random plans; with chance "counted" no p is below 1 / (R + 1)
        seed: of the random plans and of the bootstrap
        chance: counted: p is the share of random plans that do as well; normal: p from a t distribution
            through them
        batch: windows per forward; changes memory and speed only

    Returns:
        The evidence: `verdict` (beats random, not distinguishable, worse than random), `delta` (rise of the
        loss over the unpruned model, nats per token), `p` (one-sided, that a random plan does as well),
        `interval` (of the advantage over the mean random plan, nats per token), and all raw values in
        `costs`.

    Raises:
        ExciseError: the plan is for another model, only one such plan is possible, or the instrument fails a
            check.

    Example:
        >>> import criteria, experts, validate
        >>> model = experts.load("demo")
        >>> text = criteria.windows(model, stdlib="code", split="calibration", sequences=8, length=64)
        >>> held_out = criteria.windows(model, stdlib="code", split="test", sequences=8, length=64)
        >>> plan = criteria.select(criteria.score(model, "reap", text), fraction=0.5)
        >>> result = validate.against_random(model, plan, held_out, plans=20, seed=0)
        >>> result.verdict, len(result.costs[0].own.values)
        ('beats random', 20)
    """
    null = _null(chance)
    if plans < 2:
        raise ExciseError(
            f"plans is {plans}; a test needs at least 2 random plans, and 20 for a verdict at α = 0.05"
        )
    plan.check_model(model.shape.layers, model.shape.num_experts, model.fingerprint if plan.model else "")
    model.shape.check_kept(plan.kept)
    contest = contest_of(plan, model.shape, plans=plans, seed=seed)
    check_rig(model.anatomy, text, plan)
    evidence = evidence_of(contest, [loss_of(text, batch=batch)], null, seed, model.anatomy)
    return with_verdicts([evidence], Correction.NONE, null)[0]


def contest_of(
    plan: Plan,
    shape: Shape,
    *,
    plans: int,
    seed: int,
    formula: str = "",
    scope: str = "layer",
) -> Contest:
    """What a plan is compared with: its reverse, and random plans that keep its protected experts too.

    Args:
        plan: with its reverse, where that is known
        shape: of the model
        plans: R, random plans of each kind
        seed: of the random plans
        formula: of the criterion, for reports
        scope: of the budget, for reports
    """
    protected = shape.marks(plan.protected)
    equal = None if plan.uniform else equal_plans(plan, shape, protected, plans, seed)
    randoms = random_plans(plan, shape, protected, plans, seed)
    return Contest(plan, plan.reverse, randoms, formula, scope, equal)


def loss_of(text: Windows, *, batch: int = 8) -> Measure:
    """Mean cross-entropy of held-out windows, nats per token; its rows stay in memory."""
    losses = LossEvaluator(text, batch=batch)
    return Measure(LOSS, "nats per token", losses, losses.weights, text.document)


def _null(chance: Null | str) -> Null:
    try:
        return Null(chance)
    except ValueError:
        raise ExciseError(f"chance {chance!r}: expected one of {', '.join(Null)}") from None
