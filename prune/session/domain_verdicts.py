"""Whether a recipe's random plans suffice for a verdict in each domain of its held-out text."""

from prune.session.prepared import Checked, Prepared
from validate.verdict import ALPHA, Null


def domain_notes(prepared: Checked | Prepared) -> list[str]:
    """What can be said before the work. A p that is counted is at least 1 / (R + 1), times D after Holm."""
    settings = prepared.recipe.validation
    domains = len({source.label for source in settings.data})
    if settings.chance is not Null.COUNTED or domains < 2:
        return []
    from validate.statistics import random_plans_needed  # scipy, statsmodels: a second

    needed, plans = random_plans_needed(domains, ALPHA), settings.random_plans
    if plans >= needed:
        return []
    least = f"{domains / (plans + 1):.2g}"
    why = f"counted, no p of {domains} domains falls below {least} (Holm)"
    ways = f"take validate.random_plans={needed}, or validate.chance=normal"
    return [f"{plans} random plans give no verdict by domain: {why}; {ways}"]
