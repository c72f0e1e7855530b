"""Mixtures of domains and max_min, by hand numbers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from criteria.budget import from_keep
from criteria.by_name import resolve
from criteria.calibration import Calibration
from criteria.experiment_context import ExperimentContext
from criteria.max_min import max_min
from criteria.mixture import mixed
from criteria.observe import observe
from criteria.scores import score
from criteria.statistics import Statistics
from experts.anatomy import dissect
from experts.errors import ExciseError
from experts.shape import Shape
from tests.support import tiny
from tests.support.inputs import windows
from tests.support.micro import micro_statistics

ROOT = np.sqrt(148)

# Domain x has token 0, domain y tokens 1 and 2. In equal parts x counts 3/2 times and y 3/4 times.
# Per domain: reap_sum x (2, 0, 1), y (0, 24, 39); Σδ x (2, 0, 1), y (0, 4 + √148, 69).
BY_HAND: dict[str, list[float]] = {
    "mix:x=1,y=1:reap_sum": [3, 18, 30.75],
    "mix:x=1,y=1:utilization": [0.5, 0.5, 1],
    "mix:x=1,y=1:razor:over=sum": [3, 0.75 * (4 + ROOT), 53.25],
    "reversed:mix:y=3,x=3:reap_sum": [-3, -18, -30.75],
    "mix:x=5,y=10:reap": [2, 12, 40 / 3],
    "mix:y=1:reap": [np.nan, 12, 39 / 2],
    "mix:y=1:max_activation": [np.nan, 4, 4],
    "mix:x=1:max_activation": [2, np.nan, 1],
    "mix:x=1,y=1:specialization": [1, 1, 0],
}


def values(name: str, statistics: Statistics) -> np.ndarray:
    found = score(resolve(name), statistics, (0,), np.zeros((1, 3), bool), "", "")
    assert found.criterion == name
    return found.values


@pytest.mark.parametrize("name", BY_HAND)
def test_mixtures_by_hand(name: str) -> None:
    np.testing.assert_allclose(values(name, micro_statistics()), [BY_HAND[name]], rtol=1e-12)


def test_domains_are_kept_apart() -> None:
    """Each domain's sums are those of a pass over its windows alone, and together they are the whole."""
    anatomy, text = dissect(tiny.build64("olmoe")), windows(domains=3)
    found = observe(anatomy, text, batch=4, forms=["reroute"])
    assert found.domains == tuple(found.parts) == ("x", "y", "z")
    for number, part in enumerate(found.parts.values()):
        alone = observe(anatomy, text.select(np.flatnonzero(text.domain == number)), forms=["reroute"])
        for name in ("tokens", "moments", "peak", "turning", "together", "by_domain"):
            np.testing.assert_allclose(getattr(part, name), getattr(alone, name), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(part.replacement["reroute"], alone.replacement["reroute"], rtol=1e-9)
    np.testing.assert_allclose(sum(part.together for part in found.parts.values()), found.together)


def test_a_mixture_is_a_text_with_those_shares() -> None:
    """Twice the windows of one domain, really read, against its weight."""
    anatomy, text = dissect(tiny.build64("qwen3_moe")), windows()
    twice = observe(anatomy, text.select(np.array([0, 2, 4, 0, 2, 4, 1, 3, 5])))
    mix = mixed(observe(anatomy, text), (("x", 2.0), ("y", 1.0)))
    for name in ("reap", "utilization", "easy_ep", "hub_joint", "specialization", "max_activation"):
        one, other = (resolve(name).score(found) for found in (mix, twice))
        scale = np.nansum(other) / np.nansum(one) if name == "easy_ep" else 1  # a sum over more tokens
        np.testing.assert_allclose(one * scale, other, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mix:x=1,law=2:reap", "mix names 'law'; the domains of the calibration text are 'x', 'y'"),
        ("mix:x=0:reap", "weights of domains are positive numbers.* got 'x': 0"),
        ("mix:x=inf:reap", "got 'x': inf"),
        ("mix:x=two:reap", "expected mix:DOMAIN=WEIGHT,DOMAIN=WEIGHT:CRITERION"),
        ("mix:x=1", "expected mix:DOMAIN=WEIGHT"),
        ("mix:x=1:mix:y=1:reap", "has a mixture already"),
        ("mix:x=1,y=1,x=2:reap", "'mix:x=1,y=1,x=2:reap': names domain 'x' twice; give it one weight"),
        ("mix:x=1,x=two:reap", "names domain 'x' twice"),
        ("mix:x=1:random", "random reads nothing, so no mixture of texts changes it; write random"),
        ("mix:x=1:reversed:router_norm", "reads the weights alone, .*; write reversed:router_norm"),
        ("mix:x=1:weight_norm", "weight_norm reads the weights alone, so no mixture of texts changes it"),
        ("mix:x=1:causal_removal", "causal_removal is measured on the windows as they are"),
        ("max_min:of=mix:x=1:reap", "max_min: of=mix:x=1:reap has no score in each domain"),
        ("max_min:of=gradient", "max_min: of=gradient has no score in each domain"),
    ],
)
def test_wrong_mixtures(name: str, message: str) -> None:
    with pytest.raises(ExciseError, match=message):
        values(name, micro_statistics())


def calibration(domains: int, **options: Any) -> Calibration:
    anatomy = dissect(tiny.build("olmoe"))
    model: Any = type(
        "Stub", (), {"anatomy": anatomy, "shape": anatomy.shape, "fingerprint": "m", "layout": None}
    )
    return Calibration(model, windows(domains=domains), protect=False, **options)


def test_a_mixture_for_all_criteria() -> None:
    """mix of a calibration is the mix of every name that reads the text; random stays random."""
    whole = calibration(2, mix={"x": 2, "y": 1}).scores([resolve(name) for name in ("reap", "random")])
    named = calibration(2).scores([resolve(name) for name in ("mix:x=2,y=1:reap", "random", "reap")])
    np.testing.assert_array_equal(whole[0].values, named[0].values)
    np.testing.assert_array_equal(whole[1].values, named[1].values)
    assert not np.allclose(named[0].values, named[2].values)
    assert (whole[0].criterion, whole[0].formula) == ("reap", "mean g·‖f‖ (mix: x 2, y 1)")


def test_refused_before_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("criteria.calibration.observe", None)
    with pytest.raises(ExciseError, match="mix names 'law'; the domains of the calibration text are 'x'"):
        calibration(1, mix={"law": 1}).scores([resolve("reap")])
    single = "max_min compares domains: .* at least two `domain` labels, found one"
    with pytest.raises(ExciseError, match=single):
        calibration(1).scores([resolve("max_min")], from_keep(Shape((0, 1, 2), 8, 3), 4, "layer"))


def test_max_min_needs_a_budget() -> None:
    with pytest.raises(ExciseError, match="max_min: a search needs the budget"):
        calibration(2).scores([resolve("max_min")])


def context(masses: dict[str, list[float]], keep: int) -> ExperimentContext:
    """One layer of four experts with these sums g·‖f‖ in each domain."""
    found, parts = micro_statistics(), {}
    for name, mass in masses.items():
        moments = np.ones((1, 4, 3, 3))
        moments[0, :, 1, 1] = mass
        parts[name] = replace(found, moments=moments, parts={}, domains=())
    whole: Any = replace(found, parts=parts, domains=tuple(masses))
    shape = Shape((0,), 4, 1)
    given: Any = {"anatomy": None, "windows": None, "batch": 1, "statistics": whole, "shape": shape}
    return ExperimentContext(
        **given, budget=from_keep(shape, keep, "layer"), protected=np.zeros((1, 4), bool)
    )


def test_max_min_by_hand() -> None:
    """The best two experts have 1.0 of the mass in a, 1.15 in b.

    In equal parts experts 1 and 3 stay (.76 and .61 against .59 of expert 2): coverage .5 and .87. With
    λ_a between .522 and .566 experts 1 and 2 stay: coverage .7 and .75 / 1.15, the best of all six pairs.
    """
    found = max_min(context({"a": [0.5, 0.5, 0.2, 0], "b": [0, 0.3, 0.45, 0.7]}, 2), "reap_sum", 50)
    assert set(np.argsort(found["score"][0])[2:]) == {1, 2}
    np.testing.assert_allclose(found["coverage"], [0.7, 0.75 / 1.15])
    assert 0.521 < found["weights"][0] < 0.567
    assert found["weights"].sum() == pytest.approx(1)


def test_max_min_is_never_below_equal_weights() -> None:
    """On random masses, against the plan of equal weights and the best of all plans."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        mass = rng.gamma(0.5, size=(3, 4))
        found = max_min(context(dict(zip("abc", mass.tolist(), strict=True)), 2), "reap_sum", 50)
        shares = mass / np.sort(mass, axis=1)[:, 2:].sum(axis=1, keepdims=True)
        equal = shares[:, np.argsort(shares.sum(axis=0))[2:]].sum(axis=1).min()
        pairs = [shares[:, [i, j]].sum(axis=1).min() for i in range(4) for j in range(i)]
        assert equal - 1e-12 <= found["coverage"].min() <= max(pairs) + 1e-12


def test_max_min_of_nothing() -> None:
    with pytest.raises(ExciseError, match="no expert has a score in domain 'b'"):
        max_min(context({"a": [1, 1, 0, 0], "b": [0, 0, 0, 0]}, 2), "reap_sum", 5)
    with pytest.raises(ExciseError, match="reversed:reap has negative scores"):
        max_min(context({"a": [1, 1, 0, 0], "b": [0, 1, 0, 0]}, 2), "reversed:reap", 5)
    with pytest.raises(ExciseError, match="this text has one"):
        max_min(context({}, 2), "reap_sum", 5)
