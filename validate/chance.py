"""Does a plan beat chance? A plan against random plans of its own sizes, on held-out text."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from criteria.text.disjoint import check_unseen
from criteria.text.windows import Windows, check_held_out
from experts.arguments import check_count, choice_of
from experts.errors import ExciseError
from experts.model import Model, check_plan
from experts.plan import Plan
from experts.shape import Shape
from validate.draw import equal_plans, random_plans
from validate.evidence import Evidence, Judged
from validate.measure import Measure, loss_measure
from validate.null import Contest, evidence_of, measure_contests, with_verdicts
from validate.rig import Check, check_rig
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
    The text must not be the one that the scores were made from: windows that repeat it are refused.

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
        ExciseError: the plan is for another model, its scores have seen the text, only one such plan is
            possible, or the instrument fails a check.

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
    null = choice_of("chance", chance, Null)
    check_plan(model, plan)
    check_held_out("text", text)
    check_count("plans", plans, 0)
    if plans < 2:
        raise ExciseError(
            f"plans is {plans}; a test needs at least 2 random plans, and 20 for a verdict at α = 0.05"
        )
    check_count("seed", seed, 0)
    check_count("batch", batch)
    model.shape.check_kept(plan.kept)
    if plan.seen is not None:
        check_unseen(plan.seen, text, "calibration", "for the test")
    measures = [loss_of(text, batch=batch)]
    judgement = plans_against_random(model, [plan], text, measures, plans=plans, seed=seed, null=null)
    return judgement.evidence[0]


@dataclass(frozen=True)
class Judgement:
    """Plans against random plans.

    Attributes:
        evidence: of every plan, with its verdict
        checks: of the instrument, all passed
        later: the same plans, judged by the later measures; empty where there are none
    """

    evidence: list[Evidence[Judged]]
    checks: list[Check]
    later: list[Evidence[Judged]] = field(default_factory=list)


def plans_against_random(
    model: Model,
    tested: Sequence[Plan],
    text: Windows,
    measures: Sequence[Measure],
    *,
    plans: int,
    seed: int,
    null: Null,
    correction: Correction = Correction.NONE,
    later: Sequence[Measure] = (),
) -> Judgement:
    """Test several plans by several measures; what `against_random` and the commands call.

    Args:
        model: loaded when a plan has no rows yet
        tested: plans of this model; the instrument is checked with the first one
        text: held-out windows, for the checks of the instrument
        measures: the held-out loss first
        plans: R, random plans of each kind
        seed: of the random plans and of the bootstrap
        null: how p is read from the random plans
        correction: over all tested plans, by each measure
        later: the same measures after something was done to every plan, random ones too
    """
    checks = check_rig(model.anatomy, text, tested[0])
    contests = [contest_of(plan, model.shape, plans=plans, seed=seed) for plan in tested]

    def judged(by: Sequence[Measure]) -> list[Evidence[Judged]]:
        for measure in by:
            measure_contests(contests, measure, model.anatomy)
        evidence = [evidence_of(contest, by, null, seed) for contest in contests]
        return with_verdicts(evidence, correction, null)

    return Judgement(judged(measures), checks, judged(later) if later else [])


def contest_of(plan: Plan, shape: Shape, *, plans: int, seed: int) -> Contest:
    """What a plan is compared with: its reverse, and random plans that keep its protected experts too.

    Args:
        plan: with its reverse, where that is known
        shape: of the model
        plans: R, random plans of each kind
        seed: of the random plans
    """
    protected = shape.marks(plan.protected)
    equal = None if plan.uniform else equal_plans(plan, shape, protected, plans, seed)
    randoms = random_plans(plan, shape, protected, plans, seed)
    return Contest(plan, plan.reverse, randoms, plan.formula, plan.scope, equal)


def loss_of(text: Windows, *, batch: int = 8) -> Measure:
    """Mean cross-entropy of held-out windows, nats per token; its rows stay in memory."""
    losses = LossEvaluator(text, batch=batch)
    return loss_measure(losses)
