"""Does a plan's lead over random plans survive the refit? Random plans get the same one."""

from dataclasses import dataclass, replace

from criteria.text.disjoint import check_unseen
from criteria.text.windows import Windows, check_held_out
from experts.arguments import check_count
from experts.model import Model, check_plan
from experts.plan import Plan
from finetune.distill.settings import Local
from finetune.refit.request import Request
from finetune.refit.result import FULL, Refit
from finetune.refit_losses import RefittedLosses
from validate.chance import contest_of, loss_of
from validate.lead import Lead, RecoveredCost, lead_of, recovery_of
from validate.rig import check_rig
from validate.verdict import Survival


@dataclass(frozen=True)
class JudgedRefit:
    """A refit beside those of random plans.

    Attributes:
        refit: of the plan
        cost: of the plan by the held-out loss, before and after, in nats per token
        lead: over the random plans, before and after
    """

    refit: Refit
    cost: RecoveredCost
    lead: Lead

    @property
    def verdict(self) -> Survival:
        """survives, reversed, not shown, or no lead before (docs/methods.md, 8)."""
        return self.lead.verdict


def refit_against_random(
    model: Model,
    plan: Plan,
    text: Windows,
    *,
    held_out: Windows,
    plans: int = 20,
    seed: int = 0,
    form: str = FULL,
    local: Local | None = None,
    ridge: float | None = None,
    fewest: int = 16,
    batch: int = 8,
) -> JudgedRefit:
    """Refit a plan and random plans of its sizes, and compare their losses on held-out text before and after.

    The instrument is checked first. Costs a refit and two forwards of the held-out text for every plan.

    Args:
        model: a loaded model, resident or streamed
        plan: experts to keep
        text: windows to refit on
        held_out: windows that neither the refit nor the scores of the plan have seen
        plans: R, number of random plans
        seed: of the random plans and of the bootstrap
        form: as in `refit_experts`
        local: as in `refit_experts`; random plans are trained, too
        ridge: as in `refit_experts`
        fewest: as in `refit_experts`
        batch: windows per forward

    Raises:
        ExciseError: as `refit_experts`; or the held-out text was seen before.

    Example:
        >>> import criteria, experts, finetune
        >>> model = experts.load("demo")
        >>> text = criteria.windows(model, stdlib="code", split="calibration", sequences=8, length=64)
        >>> held_out = criteria.windows(model, stdlib="code", split="test", sequences=8, length=64)
        >>> plan = criteria.select(criteria.score(model, "reap_sum", text), fraction=0.5)
        >>> judged = finetune.refit_against_random(model, plan, text, held_out=held_out, plans=2)
        >>> judged.cost.after < judged.cost.before
        True
    """
    check_plan(model, plan)
    model.shape.check_kept(plan.kept)
    request = Request(text, ridge, fewest, batch, form, local).of_model(model)
    check_held_out("held_out", held_out)
    check_count("seed", seed, 0)
    check_count("plans", plans, 2)
    _check_unseen(plan, text, held_out)
    check_rig(model.anatomy, held_out, plan)
    randoms = contest_of(plan, model.shape, plans=plans, seed=seed).randoms
    before, found = loss_of(held_out, batch=batch), list[Refit]()
    losses = RefittedLosses(model, request, held_out, take=found.append, wanted={plan.digest}, batch=batch)
    after = replace(before, evaluator=losses)
    for measure, title in (before, "loss before the refit"), (after, "loss after the refit"):
        measure.evaluator.measure_plans([None, plan, *randoms], model.anatomy, title)
    cost = recovery_of(plan, before, after, seed)
    return JudgedRefit(found[0], cost, lead_of(plan, randoms, randoms, before, after, seed))


def _check_unseen(plan: Plan, text: Windows, held_out: Windows) -> None:
    """Refuse held-out text that the refit or the scores of the plan have seen."""
    check_unseen(text.tokens, held_out, "the refit", "for the test")
    if plan.seen is not None:
        check_unseen(plan.seen, held_out, "calibration", "for the test")
