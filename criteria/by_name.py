"""Criteria by the names that recipes write.

A row of the registry, with settings of its experiment (`causal_removal:windows=16`); `reversed:<name>`,
`random:<seed>`, `family:<α>,<β>,mean|sum`, `razor:form=…,over=…`,
`mix:<domain>=<weight>,…:<name>`; and `file.py:function`.
"""

import difflib
from dataclasses import replace
from functools import partial
from pathlib import Path

from criteria import formulas, razor
from criteria.criterion import OBSERVED, TEXT, Criterion, Score, arxiv
from criteria.experiment import GREEDY, LEAVE_ONE_OUT, Measurement
from criteria.mixture import check_reads_text, parsed_mix, with_mix
from criteria.registry import CRITERIA, random_scores
from criteria.statistics import Statistics
from criteria.user_function import user_criterion
from experts.arrays import Array
from experts.errors import ExciseError


def resolve(name: str) -> Criterion:
    """Return the criterion of a name.

    Raises:
        ExciseError: there is none; the message has the nearest known name.
    """
    if name in CRITERIA:
        return CRITERIA[name]
    kind, colon, rest = name.partition(":")
    if kind == "reversed" and colon:
        return _reversed(name, resolve(rest))
    if kind == "random" and rest.isascii() and rest.isdigit():
        return _random(name, int(rest))
    if kind == "family":
        return _family(name, rest)
    if kind == "mix" and colon:
        weights, _, base = rest.partition(":")
        mix, of = parsed_mix(name, weights if base else ""), resolve(base)
        check_reads_text(name, of)
        return replace(with_mix(of, mix), name=name)
    if kind == "razor" and colon:
        return razor.with_form(name, rest)
    if colon and kind in CRITERIA and CRITERIA[kind].experiment:
        return _with_settings(CRITERIA[kind], rest)
    if kind.endswith(".py"):
        return user_criterion(name, Path(kind), rest)
    nearest = difflib.get_close_matches(name, [*CRITERIA, "reversed:reap"], n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else "`excise criteria` lists them"
    raise ExciseError(f"unknown criterion {name!r}; {hint}")


def _reversed(name: str, base: Criterion) -> Criterion:
    score = partial(reversed_scores, score=base.score)
    return replace(base, name=name, score=score, formula=f"−({base.formula})")


def reversed_scores(statistics: Statistics, score: Score) -> Array:
    """Return the negative of another criterion [L, E]: what that one would keep is pruned. nan stays nan."""
    return -score(statistics)


def _random(name: str, seed: int) -> Criterion:
    return replace(
        CRITERIA["random"],
        name=name,
        score=partial(random_scores, seed=seed),
        formula=f"uniform, seed {seed}",
    )


def _with_settings(row: Criterion, settings: str) -> Criterion:
    criterion = row.with_settings(settings)
    assert criterion.measurement is not None, "rows with an experiment have one"
    return replace(criterion, forms=_forms_inside(criterion.measurement))


def _forms_inside(measurement: Measurement) -> tuple[str, ...]:
    """What an experiment that takes another criterion's scores needs observed for it.

    Others than observed ones are refused by name, not after the calibration.
    """
    start, of = measurement.values.get("start"), measurement.values.get("of")
    if start is not None and not (start == LEAVE_ONE_OUT and measurement.kind == GREEDY.kind):
        _check_start(start, measurement)
        return resolve(start).forms
    if of is None:
        return ()
    if resolve(of).needs != TEXT or resolve(of).mix:
        ways = "use a criterion of one pass over the text, such as reap_sum"
        raise ExciseError(f"max_min: of={of} has no score in each domain; {ways}")
    return resolve(of).forms


def _check_start(start: str, measurement: Measurement) -> None:
    """Refuse a search that begins with a measured criterion by name, not after the calibration."""
    if resolve(start).measurement is not None:
        greedy = f"{LEAVE_ONE_OUT} or " if measurement.kind == GREEDY.kind else ""
        name = "causal_greedy" if greedy else measurement.kind
        ways = f"use {greedy}a criterion of observed statistics"
        raise ExciseError(f"{name}: start={start} is measured itself; {ways}")


def _family(name: str, rest: str) -> Criterion:
    match rest.split(","):
        case [("0" | "1" | "2") as alpha, ("0" | "1" | "2") as beta, ("mean" | "sum") as kind]:
            return Criterion(
                name,
                partial(formulas.family, alpha=int(alpha), beta=int(beta), mean=kind == "mean"),
                formula=f"{kind} g^{alpha}·‖f‖^{beta}",
                needs=TEXT,
                cost=OBSERVED,
                source=arxiv("2606.15716"),
            )
    raise ExciseError(
        f"criterion {name!r}: expected family:<α>,<β>,mean or sum with α and β in 0, 1, 2, "
        "for example family:1,2,mean"
    )
