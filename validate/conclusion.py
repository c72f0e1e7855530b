"""A verdict in a sentence: over all windows, the domains in which it does not hold, and the worst one."""

from collections.abc import Mapping, Sequence

from validate.results import CostJson, JudgedJson, PlanCostJson
from validate.statistics import random_plans_needed
from validate.verdict import ALPHA, Standing, Verdict, standing

_HEADS: Mapping[Verdict, str] = {
    "beats random": "beats random plans",
    "not distinguishable": "is not distinguishable from random plans",
    "worse than random": "is worse than random plans",
}
# What in a domain speaks against the verdict over all windows, the gravest first.
_EXCEPTIONS: Mapping[Verdict, tuple[Standing, ...]] = {
    "beats random": ("worse", "behind", "not shown"),
    "not distinguishable": ("worse",),
    "worse than random": (),
}
_CLAUSES: Mapping[Standing, str] = {
    "worse": "it is worse than they are in",
    "behind": "it costs more than they do on average in",
    "not shown": "no advantage is shown in",
}


def conclusion(criterion: str, loss: PlanCostJson, domains: Sequence[CostJson]) -> str:
    """Return the sentence on a plan.

    Args:
        criterion: what ranked the experts
        loss: of the plan over all windows
        domains: the same in each domain, worst first; may be empty
    """
    head = f"{criterion} {_HEADS[loss['verdict']]} ({_p(loss)})"
    if not domains:
        return f"{head}."
    return f"{head}{_exceptions(loss, domains)}. {_worst(domains[0])}"


def caveat(verdict: Verdict, domains: Sequence[CostJson]) -> str:
    """Return in which domains a verdict does not hold, in few words, for a cell of a table; may be empty.

    Args:
        verdict: over all windows
        domains: of the same plan
    """
    found = _by_standing(domains)
    if verdict == "beats random" and too_few(domains):
        parts = [f"behind in {_and(found['behind'])}"] if "behind" in found else []
        return "; ".join([*parts, "too few random plans to tell by domain"])
    kinds = [kind for kind in _EXCEPTIONS[verdict] if kind in found]
    return "; ".join(f"{kind} in {_and(found[kind])}" for kind in kinds)


def too_few(domains: Sequence[CostJson]) -> bool:
    """Return whether no p that is counted over these random plans can survive Holm over the domains."""
    needed = random_plans_needed(len(domains), ALPHA)
    counted = [domain for domain in domains if domain["p_corrected"] is not None]  # else there is no spread
    unfound = [domain for domain in counted if domain["smallest_detectable"] is None]
    return any(len(domain["random"]["values"]) < needed for domain in unfound)


def _exceptions(loss: PlanCostJson, domains: Sequence[CostJson]) -> str:
    """Where the verdict does not hold."""
    found = _by_standing(domains)
    beats = loss["verdict"] == "beats random"
    if beats and too_few(domains):
        return _untested(domains, found.get("behind", []))
    if beats and set(found) == {"ahead"}:
        return f", also in each of {_and([domain['name'] for domain in domains])} by itself"
    kinds = [kind for kind in _EXCEPTIONS[loss["verdict"]] if kind in found]
    clauses = [f"{_CLAUSES[kind]} {_with_p(domains, found[kind])}" for kind in kinds]
    return f", but {'; '.join(clauses)}" if clauses else ""


def _untested(domains: Sequence[CostJson], behind: list[str]) -> str:
    """No verdict by domain is possible; where the plan falls behind is said all the same."""
    plans = len(domains[0]["random"]["values"])
    needed = random_plans_needed(len(domains), ALPHA)
    why = f"{plans} random plans are too few to tell by domain: {len(domains)} domains take {needed}"
    also = f"; {_CLAUSES['behind']} {_with_p(domains, behind)}" if behind else ""
    return f", but {why}{also}"


def _worst(domain: CostJson) -> str:
    """The domain with the largest rise of the loss, beside random plans."""
    random = domain["random"]
    return (
        f"Worst domain: {domain['name']}, ΔCE {domain['delta']:+z.4f} against {random['mean']:+z.4f} "
        f"± {random['sd']:.4f} of random plans."
    )


def _by_standing(domains: Sequence[CostJson]) -> dict[Standing, list[str]]:
    """Names of the domains by how the plan stands there."""
    found: dict[Standing, list[str]] = {}
    for domain in domains:
        kind = standing(domain["verdict"], domain["delta"], domain["random"]["mean"])
        found.setdefault(kind, []).append(domain["name"])
    return found


def _with_p(domains: Sequence[CostJson], names: list[str]) -> str:
    tests = {domain["name"]: domain for domain in domains}
    return _and([f"{name} ({_p(tests[name])})" for name in names])


def _p(test: JudgedJson) -> str:
    """The p that the verdict rests on, corrected: that chance does as badly where the plan is worse."""
    p = test["p_worse_corrected"] if test["verdict"] == "worse than random" else test["p_corrected"]
    if p is None:
        return "p = nan"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _and(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
