"""Measurements made elsewhere: the released positions of arXiv 2606.10703, files that are not what they
should be, and the pairs we pick.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from criteria.scores import Scores
from experts.errors import ExciseError
from prune.console.cli import app
from validate.expert_pairs import GATE_WEIGHT, RANDOM_PAIR, pick_pairs
from validate.positions import read_positions
from validate.token_audit import Outcome, audit

# docs/methods.md 3, recomputed from the released file: layer, criterion, ΔCE high, ΔCE low, d (ddof 0), p
# (t), p (Wilcoxon). The one d that is
# printed there as .050 is .05059 at ddof 0 (.05046 at ddof 1).
PUBLISHED = [
    (0, "utilization_rate", -0.0052, 0.0125, -0.071, 0.3188, 0.2590),
    (4, "activation_norm", 0.0331, -0.0013, 0.119, 0.0944, 0.1431),
    (7, "mean_routing_weight_when_active", 0.0145, 0.0024, 0.072, 0.3124, 0.0502),
    (11, "activation_std", 0.0684, 0.0194, 0.141, 0.0476, 0.0148),
    (15, "utilization_rate", 0.0348, 0.0167, 0.051, 0.4763, 0.8385),
    (15, "mean_routing_weight_when_active", 0.0057, 0.0362, -0.095, 0.1795, 0.0283),
]


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["audit", *map(str, arguments), "--quiet"])


@pytest.fixture(scope="module")
def released(shared: Path) -> Path:
    return shared / "reference" / "causal-audit" / "olmoe-positions.csv"


@pytest.fixture(scope="module")
def audited(released: Path) -> Any:
    """What the command finds in the released file, at ddof 0."""
    done = invoke("--positions", released, "--ddof", 0, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def others(holm: int, benjamini_hochberg: int) -> dict[str, int]:
    return {"cells_holm": holm, "cells_benjamini-hochberg": benjamini_hochberg}


def test_the_published_figures(audited: Any) -> None:
    cells = {(cell["layer"], cell["criterion"]): cell for cell in audited["cells"]}
    assert len(cells) == 20
    for layer, criterion, high, low, d, p_t, p_wilcoxon in PUBLISHED:
        cell = cells[layer, criterion]
        assert (round(cell["mean_high"], 4), round(cell["mean_low"], 4), round(cell["d"], 3)) == (
            high,
            low,
            d,
        )
        assert (round(cell["p_t"], 4), round(cell["p_wilcoxon"], 4)) == (p_t, p_wilcoxon)
        assert cell["n"] == 200
    assert audited["passing"] == {
        "delta": {"cells": 0, "of": 20} | others(0, 0),
        "absolute": {"cells": 6, "of": 20} | others(8, 10),
    }
    absolute = audited["outcomes"]["absolute"]
    assert sum(cell["passes"] for cell in absolute) == 6
    by_holm, by_rate = np.ones(20, bool), np.ones(20, bool)
    for name in ("p_t", "p_wilcoxon"):
        p = np.array([cell[name] for cell in absolute])
        by_rate &= stats.false_discovery_control(p) <= 0.05
        ranks = stats.rankdata(p, method="ordinal") - 1
        passed = np.sort(p) * (20 - np.arange(20)) <= 0.05
        by_holm &= np.logical_and.accumulate(passed)[ranks]
    assert (by_holm.sum(), by_rate.sum()) == (8, 10)


def test_every_cell_from_the_rows_by_scipy(released: Path, audited: Any) -> None:
    """No pandas, none of our statistics."""
    with released.open() as file:
        rows = list(csv.DictReader(file))
    for cell in audited["cells"]:
        mine = [
            row for row in rows if (row["metric"], int(row["layer"])) == (cell["criterion"], cell["layer"])
        ]
        high, low = (np.array([float(row[f"{side}_delta"]) for row in mine]) for side in ("high", "low"))
        difference = high - low
        assert cell["d"] == pytest.approx(difference.mean() / difference.std())
        assert cell["p_t"] == pytest.approx(stats.ttest_rel(high, low).pvalue)
        assert cell["p_wilcoxon"] == stats.wilcoxon(difference).pvalue
        assert cell["share_high_larger"] == np.mean(high > low)
        texts = [(row["sample"], row["batch"]) for row in mine]
        order = [
            text for text in dict.fromkeys((row["sample"], row["batch"]) for row in rows) if text in texts
        ]  # as they stand in the file
        sums = np.array(
            [sum(d for d, text in zip(difference, texts, strict=True) if text == one) for one in order]
        )
        rng = np.random.default_rng(0)
        flipped = stats.permutation_test(
            (sums,),
            lambda x, axis: x.sum(axis=axis),
            permutation_type="samples",
            vectorized=True,
            rng=rng,
            batch=1000,
        )
        assert cell["p_clustered"] == pytest.approx(flipped.pvalue)
        assert cell["documents"] == len(order)
        assert cell["smallest_detectable_d"] == pytest.approx(0.276, abs=0.001)
        t = difference.mean() / difference.std(ddof=1) * np.sqrt(200)
        for end, tail in (("d_low", 0.025), ("d_high", 0.975)):  # d (ddof 0) = noncentrality / √(n − 1)
            assert stats.nct.sf(t, 199, cell[end] * np.sqrt(199)) == pytest.approx(tail, abs=1e-6)
        reach = stats.bootstrap(
            (sums, np.array([texts.count(one) for one in order])),
            lambda total, size, axis: total.sum(axis=axis) / size.sum(axis=axis),
            paired=True, n_resamples=9999, method="percentile", batch=1000, rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        assert (cell["low"], cell["high"]) == pytest.approx((reach.low, reach.high))
        power = stats.nct.sf(
            stats.t.ppf(1 - 0.00125, cell["needed_n"] - 1),
            cell["needed_n"] - 1,
            abs(t / np.sqrt(200)) * np.sqrt(cell["needed_n"]),
        )
        assert power == pytest.approx(0.8, abs=0.005)
        assert cell["passes"] == (
            cell["p_t"] * 20 <= 0.05 and cell["p_wilcoxon"] * 20 <= 0.05 and high.mean() > low.mean()
        )


@pytest.mark.slow
def test_ddof_is_a_parameter_and_is_printed(released: Path, audited: Any) -> None:
    one = json.loads(invoke("--positions", released, "--ddof", 1, "--json").stdout)
    assert (audited["ddof"], one["ddof"]) == (0, 1)
    assert one["cells"][0]["d"] == pytest.approx(audited["cells"][0]["d"] * np.sqrt(199 / 200))
    printed = invoke("--positions", released, "--ddof", 0, "--outcome", "absolute").stdout
    assert "d (ddof 0)" in printed
    assert "6 of 20 cells pass" in printed


# Files that are not what they should be.


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


HEAD = "layer,metric,sample,high_delta,low_delta"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("layer,metric,high_delta", "0,a,1"), r"no column low_delta; it has layer, metric, high_delta"),
        (("layer,high_delta,low_delta", "0,1,2"), r"no column criterion \(or metric\)"),
        (
            (HEAD, "0,a,1,0.5,0.1", "0,a,1,much,0.1"),
            r"row 3, column high_delta: 'much' is not a finite number \(1 such cells",
        ),
        ((HEAD, "0,a,1,0.5,", "0,a,1,0.2,0.1"), r"row 2, column low_delta: '' is not a finite number"),
        ((HEAD, "0,a,1,0.5,inf"), r"row 2, column low_delta: 'inf' is not a finite number"),
        ((HEAD, "0,a,1,nan,0"), r"row 2, column high_delta: 'nan' is not a finite number"),
        ((HEAD, "top,a,1,0.5,0.1"), r"row 2, column layer: 'top' is not a layer number"),
        ((HEAD, "1.5,a,1,0.5,0.1"), r"row 2, column layer: '1.5' is not a layer number"),
        ((HEAD,), r"no rows below its header"),
        (("",), r"not a CSV table"),
        ((HEAD, "0,a,1,0.5,0.1,7,8,9"), r"not a CSV table"),
        ((HEAD, "0,a,1,0.5,0.1", "0,a,1,0.5,0.1,7,8,9"), r"not a CSV table .*line 3"),
        ((HEAD, "0,a,1,0.5,0.1", "", "0,a,2,abc,0.1"), r"row 3, column layer: '' is not a layer number"),
        ((HEAD, "-3,a,1,0.5,0.1"), r"row 2, column layer: '-3' is not a layer number"),
        ((HEAD, "1e300,a,1,0.5,0.1"), r"row 2, column layer"),
        ((HEAD, "0,a,1,0.5,0.1", "0,,1,0.5,0.1"), r"row 3, column criterion: is empty"),
        ((HEAD, "0,a,,0.5,0.1"), r"row 2, column sample: is empty"),
        (
            (f"{HEAD},position", "0,a,1,0.5,0.1,7", "0,a,2,0.5,0.1,7", "0,a,1,0.5,0.1,7"),
            r"row 4 repeats an earlier one",
        ),
        ((f"model,{HEAD}", "m,0,a,1,0.5,0.1", "n,0,a,1,0.5,0.1"), r"rows of 2 models \(m, n\)"),
    ],
)
def test_files_that_are_refused(lines: tuple[str, ...], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", *lines)
    with pytest.raises(ExciseError, match=message):
        read_positions(path)
    done = invoke("--positions", path)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"excise: {path}: ")
    assert done.stderr.count("\n") == 1


def test_other_refusals(tmp_path: Path) -> None:
    assert "no such file" in invoke("--positions", tmp_path / "none.csv").stderr
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    assert "not UTF-8" in invoke("--positions", tmp_path / "binary.csv").stderr
    assert invoke().exit_code == 2
    assert invoke("demo", "--positions", tmp_path / "none.csv").exit_code == 2
    path = write(tmp_path / "p.csv", HEAD, "0,a,1,0.5,0.1", "0,a,2,0.4,0.2")
    assert "no columns high_kl and low_kl" in invoke("--positions", path, "--outcome", "kl").stderr


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["0,a,1,0.5,0.1"], "n = 1"),
        (["0,a,1,0.5,0.5", "0,a,2,0.1,0.1"], "all differences are 0"),
        (["0,a,1,0.5,0.25", "0,a,2,0.75,0.5"], "no spread"),
    ],
)
def test_degenerate_cells_have_a_reason_and_never_pass(rows: list[str], reason: str, tmp_path: Path) -> None:
    result = json.loads(invoke("--positions", write(tmp_path / "p.csv", HEAD, *rows), "--json").stdout)
    (cell,) = result["cells"]
    assert reason in cell["reason"]
    assert cell["p_t"] is None
    assert cell["d"] is None
    assert not cell["passes"]
    assert reason in invoke("--positions", tmp_path / "p.csv").stdout


def test_documents_may_be_missing(tmp_path: Path) -> None:
    """Then every position is a document of its own."""
    (cell,) = audit(
        read_positions(
            write(
                tmp_path / "p.csv", "layer,criterion,high_delta,low_delta", "0,a,1,0", "0,a,3,1", "0,a,2,0.5"
            )
        )
    )
    assert cell.documents == 3


POSITIONS = "layer,criterion,position,high_delta,low_delta"


def test_positions_of_several_texts_without_their_names(tmp_path: Path) -> None:
    """Nothing tells the texts apart: rows may repeat, p over documents is absent, and a note says so; t and
    Wilcoxon are as ever.
    """
    rng = np.random.default_rng(0)
    sides = [(repr(float(high)), repr(float(low))) for high, low in rng.normal(size=(30, 2))]
    rows = [f"0,a,{n % 10},{high},{low}" for n, (high, low) in enumerate(sides)]
    bare = json.loads(invoke("--positions", write(tmp_path / "bare.csv", POSITIONS, *rows), "--json").stdout)
    named = [f"{row},{n // 10}" for n, row in enumerate(rows)]
    full = json.loads(
        invoke("--positions", write(tmp_path / "full.csv", f"{POSITIONS},document", *named), "--json").stdout
    )
    (cell,), (other,) = bare["cells"], full["cells"]
    assert (cell["p_clustered"], cell["low"], cell["high"], cell["documents"]) == (None, None, None, None)
    assert other["documents"] == 3
    kept = cell.keys() - {"p_clustered", "low", "high", "documents"}
    assert {name: cell[name] for name in kept} == {name: other[name] for name in kept}
    note = "the rows have no column document, sample or batch, and positions repeat"
    assert note in bare["notes"][0]
    assert full["notes"] == []
    assert note in invoke("--positions", tmp_path / "bare.csv").stdout


@pytest.mark.parametrize("column", ["document", "sample", "batch", "window"])
def test_a_row_that_repeats_is_refused_where_its_text_is_known(column: str, tmp_path: Path) -> None:
    rows = ["0,a,1,0.5,0.1,7", "0,a,1,0.4,0.1,8", "0,a,1,0.3,0.1,7"]
    with pytest.raises(
        ExciseError, match=f"row 4 repeats an earlier one .*{column}, position are the same; 1 such rows"
    ):
        read_positions(write(tmp_path / "p.csv", f"{POSITIONS},{column}", *rows))


def test_without_names_and_repeats_it_is_said_that_positions_count(tmp_path: Path) -> None:
    rows = [f"0,a,{n},{n / 7},0.1" for n in range(8)]
    (cell,) = audit(read_positions(write(tmp_path / "p.csv", POSITIONS, *rows)))
    assert cell.documents == 8
    assert "every position counts as a text of its own" in invoke("--positions", tmp_path / "p.csv").stdout


@pytest.mark.parametrize("value", ["1e101", "-1.7e308"])
def test_numbers_that_are_no_loss(value: str, tmp_path: Path) -> None:
    """Their squares would overflow, and nothing could be said."""
    with pytest.raises(
        ExciseError, match=f"row 2, column high_delta: '{value}' is not a loss that a model can have"
    ):
        read_positions(write(tmp_path / "p.csv", HEAD, f"0,a,1,{value},0.1"))


def test_an_inverted_cell_does_not_pass() -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "layer": 0,
            "criterion": "a",
            "text": np.arange(300),
            "high_delta": rng.normal(0, 1, 300),
            "low_delta": rng.normal(1, 1, 300),
        }
    )
    (cell,) = audit(rows)
    assert (cell.passes, cell.inverted) == (False, True)
    (absolute,) = audit(rows.assign(low_delta=-rows["low_delta"]), Outcome.ABSOLUTE)
    assert absolute.mean_low == pytest.approx(rows["low_delta"].abs().mean())


def test_controls_have_families_of_their_own() -> None:
    """Two criteria at two layers: α / 4 for each cell; each control α / 2."""
    rng = np.random.default_rng(0)
    names = ["a", "b", GATE_WEIGHT, RANDOM_PAIR]
    rows = pd.concat(
        pd.DataFrame(
            {
                "layer": layer,
                "criterion": name,
                "text": np.arange(50),
                "high_delta": rng.normal(size=50),
                "low_delta": 0.0,
            }
        )
        for name in names
        for layer in (0, 3)
    )
    assert [(cell.criterion, cell.layer, cell.alpha) for cell in audit(rows)] == [
        *((name, layer, 0.05 / 4) for name in ("a", "b") for layer in (0, 3)),
        *((name, layer, 0.05 / 2) for name in (GATE_WEIGHT, RANDOM_PAIR) for layer in (0, 3)),
    ]


def test_too_few_positions_can_find_nothing(tmp_path: Path) -> None:
    """Five positions: the two-sided Wilcoxon p is at least 2/2⁵ = .0625, whatever the effect."""
    rows = [f"0,a,{number},{1 + number / 10},0" for number in range(5)]
    (cell,) = audit(read_positions(write(tmp_path / "p.csv", HEAD, *rows)))
    assert np.isnan(cell.smallest_detectable_d)
    assert "cannot pass with fewer than 6 positions" in cell.reason
    assert cell.needed_n == 6
    assert not cell.passes


def test_options_of_a_recipe_do_not_go_with_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", HEAD, "0,a,1,0.5,0.1", "0,a,2,0.4,0.2", "")
    assert invoke("--positions", path).exit_code == 0, "an empty line at the end is none"
    assert invoke("--positions", path, "-o", tmp_path / "out").exit_code == 2
    assert invoke("--positions", path, "--set", "a=b").exit_code == 2


# The pairs we pick.


def effects_table(k: int = 3, positions: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {
            "layer": 2,
            "document": p % 7,
            "window": p % 7,
            "position": p,
            "expert": int(e),
            "rank": rank,
            "gate_weight": 0.5 - 0.1 * rank,
        }
        | {"baseline_loss": 1.0, "delta": float(e), "kl": float(e) / 10}
        for p in range(positions)
        for rank, e in enumerate(rng.permutation(6)[:k])
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)  # the order of the rows must not matter


def scores(*values: float) -> Scores:
    array = np.array([values])
    return Scores(array, np.zeros(array.shape, bool), (2,), "mine", "")


def test_high_and_low_are_the_extremes_of_the_active_set() -> None:
    table = effects_table()
    found = pick_pairs(table, [scores(5, 4, 3, 2, 1, np.nan)], seed=0)
    mine = found[found["criterion"] == "mine"]
    assert len(mine) == 400
    for _, row in mine.iterrows():
        active = table[(table["window"] == row["window"]) & (table["position"] == row["position"])]["expert"]
        assert row["high_expert"] == active.min()
        assert row["low_expert"] == active.max(), "an expert without score (nan) is lowest"
        assert (row["high_delta"], row["low_delta"]) == (row["high_expert"], row["low_expert"]), (
            "the effect belongs to the expert"
        )
    by_gate = found[found["criterion"] == GATE_WEIGHT].merge(
        table, left_on=["window", "position", "high_expert"], right_on=["window", "position", "expert"]
    )
    assert (by_gate["rank"] == 0).all()


def test_ties_and_the_random_pair_are_drawn_evenly() -> None:
    """A constant criterion is the negative control: two different experts, each with the same chance,
    whatever their rank.
    """
    found = pick_pairs(effects_table(positions=3000), [scores(1, 1, 1, 1, 1, 1)], seed=0)
    for name in ("mine", RANDOM_PAIR):
        rows = found[found["criterion"] == name]
        assert (rows["high_expert"] != rows["low_expert"]).all()
        for side in ("high_expert", "low_expert"):
            assert stats.chisquare(rows[side].value_counts()).pvalue > 0.001
    again = pick_pairs(effects_table(positions=3000), [scores(1, 1, 1, 1, 1, 1)], seed=0)
    pd.testing.assert_frame_equal(found, again)
    assert not found.equals(pick_pairs(effects_table(positions=3000), [scores(1, 1, 1, 1, 1, 1)], seed=1))
