"""The token-level audit: a planted model where observation must fail, and the command with its raw rows,
resume and refusals.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy import stats
from typer.testing import CliRunner

from criteria.budget import Budget
from criteria.by_name import resolve
from criteria.experiment_context import ExperimentContext
from criteria.measure import measure as run_experiment
from criteria.observe import observe
from criteria.scores import Scores, score
from criteria.statistics import Statistics
from experts.ablation import ablated
from experts.anatomy import Anatomy, dissect
from experts.effects.instrument import Instrument
from experts.modes import Mode, Scope
from experts.shape import Shape
from prune.console.cli import app
from tests.support import planted, tiny
from tests.support.inputs import windows
from tests.support.removals import clean_forward, replay_position
from validate import effect_table as effects_module
from validate.active_experts import Removals
from validate.audit_cells import Cell
from validate.effect_table import measure_effects
from validate.expert_pairs import GATE_WEIGHT, RANDOM_PAIR, pick_pairs
from validate.loss import window_losses
from validate.progressive import by_gate_weight, curve
from validate.token_audit import Outcome, audit

OBSERVED = ("utilization", "routing_weight", "activation_norm", "activation_std")
# Mode zero, as the audit removes: when the router chooses anew, the gate of the useful expert grows, and that
# is an effect too.
MEASURED = ("causal_position", "causal_removal:mode=zero")


def collected(
    anatomy: Anatomy, tokens: torch.Tensor, removals: Removals, mode: Mode = Mode.ZERO
) -> pd.DataFrame:
    """The effects of all windows and layers, as the audit sees them; every window is a document."""
    tables: list[pd.DataFrame] = []
    layers = list(range(len(anatomy.layers)))
    instrument = Instrument(anatomy, mode)
    measure_effects(
        instrument,
        tokens,
        dict.fromkeys(range(len(tokens)), layers),
        removals,
        lambda _n, _l, table: tables.append(pd.DataFrame(table)),
    )
    return pd.concat(tables, ignore_index=True).assign(window=lambda table: table["document"])


def test_top_1_routing_leaves_no_curve_at_a_token() -> None:
    """Without its only expert a token has no routed output: no point, no error."""
    anatomy, text = dissect(tiny.build("mixtral", num_experts_per_tok=1)), windows(2, 10)
    chosen = np.zeros((2, 9), bool)
    chosen[:, 3:5] = True
    instrument = Instrument(anatomy, Mode.ZERO, probabilities=False)
    rows = by_gate_weight(instrument, torch.from_numpy(text.tokens), {0: chosen}, 7)[0]
    assert rows.shape == (0, 4)
    assert curve(0, "gate weight", rows, np.ones(4), np.arange(4)).mean == ()


# Controls on the controls.


@pytest.fixture(scope="module")
def planted_cells() -> dict[tuple[str, Outcome], Cell]:
    anatomy = dissect(planted.build())
    calibration, test = planted.windows(12, 40, seed=1), planted.windows(20, 40, seed=2)
    statistics = observe(anatomy, calibration, 8)
    shape = Shape(anatomy.shape.layers, anatomy.shape.num_experts, anatomy.shape.top_k)
    setting = ExperimentContext(
        anatomy, calibration, 8, statistics, shape, Budget(4, "layer", 2, ""), np.zeros((1, 8), bool)
    )
    measured = {
        resolve(name).measurement: run_experiment(resolve(name).measurement, setting) for name in MEASURED
    }  # type: ignore[arg-type, misc]
    statistics = Statistics(
        **{**statistics.__dict__, "measured": {key.key: found for key, found in measured.items()}}
    )  # type: ignore[union-attr]
    table = [
        score(resolve(name), statistics, anatomy.shape.layers, np.zeros((1, 8), bool), "", "")
        for name in (*OBSERVED, *MEASURED)
    ]
    for scores in table[:4]:
        assert scores.values[0, list(planted.IDLE)].min() > scores.values[0, list(planted.USEFUL)].max(), (
            "the idle ones look important"
        )
    effects = collected(anatomy, torch.from_numpy(test.tokens), Removals(Scope.POSITION))
    assert (effects["delta"][effects["expert"].isin(planted.IDLE)] == 0).all(), "and cost exactly nothing"
    rows = pick_pairs(effects, table, seed=0).assign(text=lambda rows: rows["document"])
    return {(cell.criterion, outcome): cell for outcome in Outcome for cell in audit(rows, outcome)}


@pytest.mark.parametrize("outcome", list(Outcome))
def test_observation_fails_where_the_busy_experts_do_nothing(
    planted_cells: dict[tuple[str, Outcome], Cell], outcome: Outcome
) -> None:
    """Frequency is high and effect zero: all four observational criteria fail, and are found to rank the
    wrong way round.
    """
    for name in OBSERVED:
        cell = planted_cells[name, outcome]
        assert not cell.passes
        assert cell.inverted
        assert cell.mean_high == 0 < cell.mean_low


@pytest.mark.parametrize("outcome", list(Outcome))
def test_measured_removals_pass_there(
    planted_cells: dict[tuple[str, Outcome], Cell], outcome: Outcome
) -> None:
    for name in MEASURED:
        assert planted_cells[name, outcome].passes
        assert planted_cells[name, outcome].p_clustered < 0.05
    assert not planted_cells[RANDOM_PAIR, outcome].passes
    assert not planted_cells[GATE_WEIGHT, outcome].passes, "here even the gate weight misleads"


@pytest.mark.slow
def test_the_negative_control_keeps_alpha() -> None:
    """Pairs at random on a real (random) model, 100 draws: the whole rule passes, or inverts, in at most α of
    the cells.
    """
    anatomy = dissect(tiny.build("olmoe"))
    effects = collected(anatomy, torch.from_numpy(windows(3, 24).tokens), Removals(Scope.POSITION))
    effects = effects[effects["layer"] == 1]
    cells = []
    for seed in range(100):
        rows = pick_pairs(effects, [], seed).assign(text=lambda rows: rows["window"])
        cells += audit(rows[rows["criterion"] == RANDOM_PAIR])
    assert len(cells) == 100
    assert np.mean([cell.passes or cell.inverted for cell in cells]) <= 0.08
    assert np.mean([cell.p_t <= 0.05 for cell in cells]) <= 0.09


# What is measured.


def test_sampled_positions_are_those_of_the_whole_table() -> None:
    """In both scopes; also a window of which no position is read."""
    anatomy, tokens = dissect(tiny.build("olmoe")), torch.from_numpy(windows(4, 16).tokens)
    chosen = np.random.default_rng(0).random((3, 4, 15)) < 0.2
    chosen[:, 2] = False
    for scope in (Scope.POSITION, Scope.SEQUENCE):
        every, some = (collected(anatomy, tokens, Removals(scope, positions=part)) for part in (None, chosen))
        layer = every["layer"].map({index: row for row, index in enumerate(anatomy.shape.layers)})
        wanted = every[chosen[layer, every["window"], every["position"]]].reset_index(drop=True)
        assert len(some) == chosen.sum() * anatomy.shape.top_k
        keys = ["window", "layer", "position", "expert"]
        one, other = (table.sort_values(keys).reset_index(drop=True) for table in (wanted, some))
        pd.testing.assert_frame_equal(one, other, atol=2e-6, rtol=0)


# The command.


def invoke(recipe: Path, output: Path, *overrides: str) -> Any:
    options = [part for override in overrides for part in ("--set", override)]
    return CliRunner().invoke(app, ["audit", str(recipe), "-o", str(output), "--quiet", "--json", *options])


@pytest.fixture
def audit_recipe(recipe_path: Path) -> Path:
    data = yaml.safe_load(recipe_path.read_text())
    data["criteria"] = ["utilization", "reap"]
    data["validate"] |= {
        "audit": {"positions": 40},
        "progressive": {"max_removed": 3, "positions": 30, "windows": 2, "draws": 19},
    }
    recipe_path.write_text(yaml.safe_dump(data))
    return recipe_path


def test_the_command(audit_recipe: Path, tmp_path: Path) -> None:
    """Cells for both criteria and controls at all layers; the raw rows beside them give the same cells again,
    as a file from elsewhere.
    """
    done = invoke(audit_recipe, tmp_path / "a")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert json.loads((tmp_path / "a" / "audit.json").read_text()) == result
    names = ("utilization", "reap", GATE_WEIGHT, RANDOM_PAIR)
    assert [(cell["criterion"], cell["layer"]) for cell in result["cells"]] == [
        (name, layer) for name in names for layer in range(3)
    ]
    asked = {
        "layer",
        "criterion",
        "n",
        "mean_high",
        "mean_low",
        "d",
        "p_t",
        "p_wilcoxon",
        "share_high_larger",
        "passes",
        "smallest_detectable_d",
    }
    assert all(asked <= cell.keys() and cell["n"] == 40 for cell in result["cells"])
    assert set(result["passing"]) == {"delta", "absolute", "kl"}

    again = CliRunner().invoke(app, ["audit", "--positions", str(tmp_path / "a" / "positions.csv"), "--json"])
    for one, other in zip(json.loads(again.stdout)["cells"], result["cells"], strict=True):
        one.pop("spearman"), other.pop("spearman")
        assert one == other

    effects = pd.read_parquet(tmp_path / "a" / "effects.parquet")
    assert len(effects) == 3 * 40 * 3
    report = (tmp_path / "a" / "audit.md").read_text()
    for text in (
        "## Rule",
        "Bonferroni",
        "mean g·‖f‖",
        "KL(clean ‖ ablated)",
        "Progressive removal, layer 2",
        "noncentral t",
    ):
        assert text in report


def test_spearman_and_pairs_from_the_raw_effects(audit_recipe: Path, tmp_path: Path) -> None:
    """From effects.parquet by scipy alone: the order of the gate weights inside the active set."""
    result = json.loads(invoke(audit_recipe, tmp_path / "a", "validate.progressive=null").stdout)
    effects = pd.read_parquet(tmp_path / "a" / "effects.parquet")
    for cell in result["cells"]:
        if cell["criterion"] == GATE_WEIGHT:
            there = effects[effects["layer"] == cell["layer"]].groupby(["document", "position"])
            rho = [stats.spearmanr(rows["gate_weight"], rows["delta"]).statistic for _, rows in there]
            assert cell["spearman"] == pytest.approx(np.nanmean(rho))
            high = [rows.loc[rows["gate_weight"].idxmax(), "delta"] for _, rows in there]
            assert cell["mean_high"] == pytest.approx(np.mean(high))


@pytest.mark.slow
def test_an_interrupted_audit_resumes(
    audit_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    position = effects_module._Layer.at_positions

    def interrupted(*arguments: Any) -> Any:
        measured.append(len(measured))
        if len(measured) == 8:
            raise KeyboardInterrupt
        return position(*arguments)

    monkeypatch.setattr(effects_module._Layer, "at_positions", interrupted)
    stopped = invoke(audit_recipe, tmp_path / "a", "validate.progressive=null")
    assert stopped.exit_code == 1
    assert "resumes" in stopped.stderr
    resumed = invoke(audit_recipe, tmp_path / "a", "validate.progressive=null")
    assert len(measured) == 8 * 3 + 1, "a finished layer of a window was measured again"
    assert (
        json.loads(resumed.stdout)["cells"]
        == json.loads(invoke(audit_recipe, tmp_path / "b", "validate.progressive=null").stdout)["cells"]
    )
    before = len(measured)
    assert json.loads(invoke(audit_recipe, tmp_path / "a", "validate.progressive=null").stdout) == json.loads(
        resumed.stdout
    )
    assert len(measured) == before, "a finished audit measures nothing"


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        "validate.audit.scope=sequence",
        "validate.audit.mode=mean",
        "validate.audit.mode=reroute",
        "validate.audit.positions=all",
    ],
)
def test_other_audits(change: str, audit_recipe: Path, tmp_path: Path) -> None:
    done = invoke(audit_recipe, tmp_path / "a", change, "validate.progressive=null", "validate.sequences=2")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert "progressive" not in result
    assert {cell["n"] for cell in result["cells"]} == ({2 * 63} if "all" in change else {40})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "validate.audit.positions=5",
            r"validate.audit.positions is 5: after correction for 6 cells .* fewer than 8 positions",
        ),
        (
            "validate.audit.positions=5000",
            r"validate.audit.positions is 5000, the validation text has 504; lower it or add text",
        ),
        ("validate.audit.positions=few", r"validate.audit.positions"),
        (
            "validate.audit.layers=[1, 7]",
            r"validate.audit.layers: layer 7 is dense or absent; the layers with experts are \[0, 1, 2\]",
        ),
        ("validate.audit.scope=corpus", r"validate.audit.scope: input should be 'position' or 'sequence'"),
        ("validate.audit.ddof=2", r"validate.audit.ddof: input should be 0 or 1"),
        ("validate.progresive.draws=5", r"unknown key 'validate.progresive'; did you mean 'progressive'"),
    ],
)
def test_refusals(change: str, message: str, audit_recipe: Path, tmp_path: Path) -> None:
    import re

    done = invoke(audit_recipe, tmp_path / "a", change)
    assert done.exit_code == 1
    assert re.search(message, done.stderr), done.stderr
    assert not (tmp_path / "a" / "audit.json").exists()


# Progressive removal.


@pytest.mark.slow
def test_curves_against_plain_ablations(audit_recipe: Path, tmp_path: Path) -> None:
    """Raw rows and means of two points per layer by whole forwards on the recipe's own windows."""
    from prune.recipe.read import read_recipe
    from prune.session.prepare import prepare
    from prune.session.session import Session

    result = json.loads(invoke(audit_recipe, tmp_path / "a").stdout)["progressive"]
    rows = pd.read_csv(tmp_path / "a" / "progressive.csv")
    session = Session(prepare(read_recipe(audit_recipe), tmp_path / "b"))
    anatomy, validation = session.anatomy, session.texts.validation
    table: list[Scores] = session.calibration.scores(session.prepared.criteria)
    chosen = validation.select(np.array(sorted(rows["window"][rows["position"].isna()].unique())))
    clean = window_losses(anatomy.model, chosen)
    for layer, index in enumerate(anatomy.shape.layers):
        order = np.argsort(table[1].values[layer], kind="stable")
        gone = torch.zeros(anatomy.shape.num_experts, dtype=torch.bool)
        gone[order[:2].copy()] = True
        with ablated(anatomy, {layer: gone}, Mode.REROUTE):
            expected = window_losses(anatomy.model, chosen) - clean
        mine = rows[(rows["layer"] == index) & (rows["order"] == "reap") & (rows["removed"] == 2)]
        np.testing.assert_allclose(mine["delta"], expected, atol=1e-5)
        (curve,) = (one for one in result["curves"] if (one["layer"], one["order"]) == (index, "reap"))
        assert curve["mean"][1] == pytest.approx(expected.mean(), abs=1e-5)
        draws = (
            rows[(rows["layer"] == index) & rows["order"].str.startswith("random ")]
            .groupby(["order", "removed"])["delta"]
            .mean()
            .unstack()
        )
        assert len(draws) == 19
        assert curve["p"] == pytest.approx(
            [(1 + (draws[j] <= curve["mean"][j - 1] + 1e-12).sum()) / 20 for j in (1, 2, 3)]
        )
        windows_of = [float(mine[mine["window"] == window]["delta"].iloc[0]) for window in mine["window"]]
        per_document = mine.groupby("document", sort=True)["delta"].agg(["sum", "size"])
        found = stats.bootstrap(
            (per_document["sum"].to_numpy() * 63, per_document["size"].to_numpy() * 63.0),
            lambda total, size, axis: total.sum(axis=axis) / size.sum(axis=axis),
            paired=True, n_resamples=9999, method="percentile", batch=1000, rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        assert curve["interval"][1] == pytest.approx([found.low, found.high], abs=1e-9), windows_of
        (chance,) = (one for one in result["curves"] if (one["layer"], one["order"]) == (index, "random"))
        np.testing.assert_allclose(chance["mean"], draws.mean())
        np.testing.assert_allclose(chance["sd"], draws.std(ddof=1))


@pytest.mark.slow
def test_removal_at_the_token_against_replay(audit_recipe: Path, tmp_path: Path) -> None:
    """The largest one and two of three active experts, at that position alone."""
    from prune.recipe.read import read_recipe
    from prune.session.prepare import prepare
    from prune.session.session import Session

    invoke(audit_recipe, tmp_path / "a")
    rows = pd.read_csv(tmp_path / "a" / "progressive.csv")
    rows = rows[rows["position"].notna()]
    assert sorted(rows["removed"].unique()) == [1, 2], "never the last active expert"
    assert (rows.groupby(["layer", "removed"]).size() == 30).all()
    session = Session(prepare(read_recipe(audit_recipe), tmp_path / "b"))
    instrument = Instrument(session.anatomy, Mode.ZERO)
    for _, row in rows.sample(6, random_state=0).iterrows():
        layer, position = session.anatomy.shape.layers.index(row["layer"]), int(row["position"])
        tokens = torch.from_numpy(session.texts.validation.tokens[[int(row["window"])]])
        clean = clean_forward(instrument, tokens, Scope.POSITION)
        ranked = clean.index[layer][0, position][
            torch.argsort(clean.weight[layer][0, position], descending=True)
        ]
        gone = torch.zeros(session.anatomy.shape.num_experts, dtype=torch.bool)
        gone[ranked[: int(row["removed"])]] = True
        loss, _ = replay_position(instrument, clean, position, {layer: gone})
        assert row["delta"] == pytest.approx(float(loss - clean.losses[0, position]), abs=1e-5)


def test_cliff_is_the_first_point_above_a_tenth() -> None:

    rows = np.array([[0.0, 0.1], [0.05, 0.16], [0.0, 0.0], [0.3, 0.3]])
    found = curve(0, "x", rows, np.ones(2), np.arange(2))
    assert found.mean == (0.05, pytest.approx(0.105), 0.0, pytest.approx(0.3))
    assert found.cliff == 2
    assert curve(0, "x", rows[:1], np.ones(2), np.arange(2)).cliff is None
