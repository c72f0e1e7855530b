"""Observed sums on another mixture of the domains, without a second pass (docs/methods.md 1.7)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from criteria.criterion import DOMAINS, NOTHING, WEIGHTS, Criterion, Mix
from criteria.statistics import ADDED, Statistics
from experts.errors import ExciseError


def mixed(statistics: Statistics, mix: Mix) -> Statistics:
    """Return what the pass would have left on a text that mixes the domains by weight.

    Domain d's sums count (w_d / Σ w) · T / T_d times, T its tokens and those of the whole text, so that the
    share of its tokens is w_d / Σ w. The largest activation is that of the domains with a weight.

    Args:
        statistics: of a text with domains
        mix: (domain, weight w > 0)

    Raises:
        ExciseError: the text lacks a domain.
    """
    check_domains(mix, statistics.domains)
    if len(statistics.domains) < 2:
        return statistics
    total, weights = statistics.tokens.sum(), sum(weight for _, weight in mix)
    parts = []
    for domain, weight in mix:
        part = statistics.parts[domain]
        if not part.tokens.sum():
            raise ExciseError(
                f"mix: domain {domain!r} has no token in the calibration text; ask for more windows"
            )
        parts.append(_scaled(part, weight / weights * total / part.tokens.sum()))
    return _narrowed(_added(parts), [statistics.domains.index(domain) for domain, _ in mix])


def check_domains(mix: Mix, domains: Sequence[str]) -> None:
    """Refuse domains that a text lacks.

    Raises:
        ExciseError: with the names that it has.
    """
    if missing := [domain for domain, _ in mix if domain not in domains]:
        raise ExciseError(
            f"mix names {', '.join(map(repr, missing))}; the domains of the calibration text are "
            f"{', '.join(map(repr, domains))} (`domain` of its sources)"
        )


def check_compares(criterion: Criterion, domains: Sequence[str]) -> None:
    """Refuse a criterion that compares domains on a text of one, before any work."""
    if criterion.needs == DOMAINS and len(domains) < 2:
        needs = "calibration.data needs sources with at least two `domain` labels"
        raise ExciseError(f"{criterion.name} compares domains: {needs}, found one")


def check_reads_text(name: str, criterion: Criterion) -> None:
    """Refuse a mixture for a criterion alone that reads no text: its scores are the same on every mixture.

    Args:
        name: what was asked for, with the mixture
        criterion: what is to be mixed
    """
    if criterion.needs in (NOTHING, WEIGHTS):
        reads = "the weights alone" if criterion.needs == WEIGHTS else "nothing"
        raise ExciseError(
            f"criterion {name!r}: {criterion.name} reads {reads}, so no mixture of texts changes it; "
            f"write {criterion.name}"
        )


def with_mix(criterion: Criterion, mix: Mix) -> Criterion:
    """Return the criterion on a mixture; one that reads no text stays what it is.

    Raises:
        ExciseError: its scores are measured on the text itself, or it has a mixture already.
    """
    if criterion.measurement is not None:
        raise ExciseError(
            f"mix weighs the sums of observed criteria; {criterion.name} is measured on the windows "
            "as they are: mix the sources of calibration.data for it"
        )
    if criterion.mix:
        raise ExciseError(f"{criterion.name}: has a mixture already; give one")
    if criterion.needs in (NOTHING, WEIGHTS):
        return criterion
    shown = ", ".join(f"{domain} {weight:g}" for domain, weight in mix)
    return replace(criterion, mix=mix, formula=f"{criterion.formula} (mix: {shown})")


def mix_of(weights: Mapping[str, float]) -> Mix:
    """Return weights by domain as a mixture.

    Raises:
        ExciseError: there is none, or one is no positive number.
    """
    wrong = [domain for domain, weight in weights.items() if not (np.isfinite(weight) and weight > 0)]
    if wrong or not weights:
        found = f"{wrong[0]!r}: {weights[wrong[0]]}" if wrong else "none"
        raise ExciseError(
            f"mix: weights of domains are positive numbers, as in {{code: 2, prose: 1}}; got {found}"
        )
    return tuple((str(domain), float(weight)) for domain, weight in weights.items())


def parsed_mix(name: str, text: str) -> Mix:
    """Return the mixture of a criterion's name: code=2,prose=1.

    Raises:
        ExciseError: it cannot be read.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        domain, equals, weight = part.rpartition("=")
        if domain in weights:
            raise ExciseError(f"criterion {name!r}: names domain {domain!r} twice; give it one weight")
        try:
            weights[domain] = float(weight)
        except ValueError:
            equals = ""
        if not equals or not domain:
            raise ExciseError(f"criterion {name!r}: expected mix:DOMAIN=WEIGHT,DOMAIN=WEIGHT:CRITERION")
    return mix_of(weights)


def _scaled(part: Statistics, factor: float) -> Statistics:
    sums = {name: getattr(part, name) * factor for name in ADDED}
    replacement = {form: values * factor for form, values in part.replacement.items()}
    return replace(part, replacement=replacement, **sums)


def _added(parts: Sequence[Statistics]) -> Statistics:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole


def _narrowed(statistics: Statistics, domains: Sequence[int]) -> Statistics:
    """Without the domains that have no weight, and without parts."""
    names = tuple(statistics.domains[domain] for domain in domains)
    return replace(
        statistics,
        tokens=statistics.tokens[domains],
        by_domain=statistics.by_domain[..., domains],
        domains=names,
        parts={},
    )
