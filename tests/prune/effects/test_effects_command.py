"""`excise effects` from outside: its table against plain forwards, its errors, and an interruption at any
window.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from experts.anatomy import dissect
from experts.effects.instrument import Instrument
from experts.loading import load_network, load_tokenizer
from experts.modes import Mode, Scope
from prune.console.cli import app
from prune.effects import measurement as command
from prune.effects.request import numbers
from tests.support.removals import branches_fail, clean_forward, everywhere, replay_position

COLUMNS = [
    "document",
    "position",
    "token",
    "layer",
    "expert",
    "gate_weight",
    "rank",
    "baseline_loss",
    "delta",
    "kl",
]
TEXT = "The quick brown fox jumps over the lazy dog; 12 jumps a day — naïve, isn't it?\n" * 4


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def excise(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["effects", *map(str, arguments), "--dtype", "float32", "--quiet"])


def table(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def measured(model: Path, text: Path, out: Path, *arguments: object) -> pd.DataFrame:
    done = excise(model, "--text", text, "--window", 16, "--sequences", 3, "-o", out, *arguments)
    assert done.exit_code == 0, done.output
    return table(out)


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_position_table(family: str, saved: dict[str, Path], text: Path, tmp_path: Path) -> None:
    """Windows, tokens, routing and baseline by plain forwards here; every row once; a sample of the effects
    by replay.
    """
    rows = measured(saved[family], text, tmp_path / "e.parquet")
    assert list(rows.columns) == COLUMNS
    ids = load_tokenizer(saved[family])(TEXT, add_special_tokens=False)["input_ids"]
    anatomy = dissect(load_network(saved[family], "float32"))
    k, count = anatomy.shape.top_k, len(anatomy.layers)
    assert len(rows) == 3 * 15 * k * count
    assert not rows.duplicated(["document", "position", "layer", "expert"]).any()
    instrument = Instrument(anatomy)
    for number in range(3):
        tokens = torch.tensor([ids[16 * number : 16 * number + 16]])
        clean = clean_forward(instrument, tokens, Scope.SEQUENCE)
        mine = rows[rows.document == number]
        assert (mine.token == tokens[0].numpy()[mine.position]).all()
        np.testing.assert_allclose(mine.baseline_loss, clean.losses[0].numpy()[mine.position], atol=1e-6)
        for layer, index in enumerate(anatomy.shape.layers):
            cell = mine[(mine.layer == index) & (mine.position == 9)].sort_values("rank")
            weights = clean.weight[layer][0, 9]
            assert cell.expert.tolist() == clean.index[layer][0, 9][weights.argsort(descending=True)].tolist()
            assert cell["rank"].tolist() == list(range(k))
            np.testing.assert_allclose(cell.gate_weight, weights.sort(descending=True).values, atol=1e-6)
            for row in cell.itertuples():
                marks = torch.zeros(8, dtype=torch.bool)
                marks[row.expert] = True
                loss, divergence = replay_position(instrument, clean, 9, {layer: marks})
                assert row.delta == pytest.approx(float(loss - clean.losses[0, 9]), abs=1e-5)
                assert row.kl == pytest.approx(float(divergence), abs=1e-5)


def test_sequence_and_corpus_tables_agree(saved: dict[str, Path], text: Path, tmp_path: Path) -> None:
    """The same removals, read per token where the expert is active, and as the mean of the window."""
    anatomy = dissect(load_network(saved["qwen2_moe"], "float32"))
    sequence = measured(
        saved["qwen2_moe"],
        text,
        tmp_path / "s.parquet",
        "--scope",
        "sequence",
        "--layers",
        "1",
        "--mode",
        "reroute",
    )
    corpus = measured(
        saved["qwen2_moe"],
        text,
        tmp_path / "c.csv",
        "--scope",
        "corpus",
        "--layers",
        "1",
        "--mode",
        "reroute",
    )
    assert len(corpus) == 3 * 8
    assert corpus[["position", "token", "rank"]].isna().all().all()
    instrument = Instrument(anatomy, Mode.REROUTE)
    ids = torch.tensor(
        load_tokenizer(saved["qwen2_moe"])(TEXT, add_special_tokens=False)["input_ids"][:48]
    ).view(3, 16)
    clean = clean_forward(instrument, ids, Scope.SEQUENCE)
    for expert in range(8):
        marks = torch.zeros(8, dtype=torch.bool)
        marks[expert] = True
        delta, divergence = everywhere(instrument, clean, {1: marks})
        mine = corpus[corpus.expert == expert].sort_values("document")
        np.testing.assert_allclose(mine.delta, delta.mean(1), atol=1e-6)
        np.testing.assert_allclose(mine.kl, divergence.mean(1), atol=1e-6)
        rows = sequence[sequence.expert == expert]
        active = (clean.index[1] == expert).any(-1)[:, :-1]
        assert len(rows) == int(active.sum())
        np.testing.assert_allclose(rows.delta, delta.numpy()[rows.document, rows.position], atol=1e-6)
        weights = (clean.weight[1] * (clean.index[1] == expert)).sum(-1)
        if (clean.index[1] == expert).any():
            present = [float(w[w > 0].mean()) if (w > 0).any() else np.nan for w in weights]
            np.testing.assert_allclose(mine.gate_weight, present, atol=1e-6)


def test_csv_and_parquet_hold_the_same(saved: dict[str, Path], text: Path, tmp_path: Path) -> None:
    one = measured(
        saved["olmoe"], text, tmp_path / "e.csv", "--mode", "mean", "--experts", "0-3,6", "--layers", "2,0"
    )
    other = measured(
        saved["olmoe"],
        text,
        tmp_path / "e.parquet",
        "--mode",
        "mean",
        "--experts",
        "6,0,1,2,3",
        "--layers",
        "0,2",
    )
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert set(one.expert) <= {0, 1, 2, 3, 6}
    assert set(one.layer) == {0, 2}


def test_the_same_again(saved: dict[str, Path], text: Path, tmp_path: Path) -> None:
    first = measured(saved["mixtral"], text, tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(
        first, measured(saved["mixtral"], text, tmp_path / "b.parquet"), check_exact=True
    )
    assert not list(tmp_path.glob("*.partial"))
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("scope", list(Scope))
def test_interrupted_and_resumed(
    scope: Scope,
    torn: bool,
    saved: dict[str, Path],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Finished layers of windows are not measured again; the table is that of an undisturbed run."""
    whole = measured(saved["olmoe"], text, tmp_path / "whole.parquet", "--scope", scope)
    arguments = (
        saved["olmoe"],
        "--text",
        text,
        "--window",
        16,
        "--sequences",
        3,
        "--scope",
        scope,
        "-o",
        tmp_path / "e.parquet",
    )
    keep, kept = command.PartialTable.keep, []

    def third(self: command.PartialTable, number: int, layer: int, rows: Any) -> None:
        if len(kept) == 5:
            raise KeyboardInterrupt
        kept.append((number, layer))
        keep(self, number, layer, rows)

    with monkeypatch.context() as broken:
        broken.setattr(command.PartialTable, "keep", third)
        done = excise(*arguments)
        assert done.exit_code == 1
        assert "excise: interrupted" in done.stderr
    assert not (tmp_path / "e.parquet").exists()
    other = excise(*arguments, "--mode", "renormalize")
    assert (other.exit_code, "holds the windows of another measurement" in other.stderr) == (1, True)
    if torn:  # a kill in the middle of a write, or a full disk
        first = sorted((tmp_path / "e.parquet.partial").glob("*.parquet"))[0]
        first.write_bytes(first.read_bytes()[:100])
    with monkeypatch.context() as counted:
        again: list[tuple[int, int]] = []
        counted.setattr(
            command.PartialTable,
            "keep",
            lambda self, number, layer, rows: (
                again.append((number, layer)),
                keep(self, number, layer, rows),
            ),
        )
        assert excise(*arguments).exit_code == 0
    assert sorted(again) == sorted(
        {(n, layer) for n in range(3) for layer in range(3)} - set(sorted(kept)[torn:])
    )
    # Fewer windows at once round otherwise.
    pd.testing.assert_frame_equal(
        whole, table(tmp_path / "e.parquet"), check_exact=scope is Scope.POSITION, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers", "0"), "layer 0 is dense or absent; the layers with experts are 1, 2"),
        (("--layers", "1,9"), "layer 9 is dense or absent"),
        (("--layers", "1,x"), "--layers 1,x: expected numbers like 0,2,5 or 0-5, got 'x'"),
        (("--experts", "8"), "expert 8 is out of range; a layer has experts 0 to 7"),
        (("--window", "100000"), "text.txt: the text has 328 tokens, less than a window of 100000"),
        (("--window", "1"), "--window is 1: an effect needs a token and the one that follows it"),
        (("--window", "16", "--sequences", "99"), "the text has 328 tokens, 20 full windows of 16; 99 asked"),
        (("--sequences", "-1"), "--sequences is -1"),
        (("--text", "nowhere.txt"), "nowhere.txt: No such file or directory"),
        (("-o", "table.xlsx"), "table.xlsx: the name of the table must end in .parquet or .csv"),
        (("-o", "."), "name of the table must end in"),
        (("-o", "folder.csv"), "folder.csv: is a folder; name a file"),
        (("-o", "text.txt/e.csv"), "cannot be written"),
        (("--window", "1", "-o", "there.csv"), "--window is 1"),
        (("-o", "there.csv"), "there.csv: exists; choose another --output, or --force to replace it"),
        (("--scope", "everywhere"), None),
    ],
)
def test_errors(
    arguments: tuple[str, ...],
    message: str | None,
    saved: dict[str, Path],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "folder.csv").mkdir()
    done = excise(saved["deepseek_v2"], "--text", text, "-o", "e.csv", "--window", 16, *arguments)
    assert done.exit_code == (1 if message else 2)
    if message:
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert (
        sorted(path.name for path in tmp_path.iterdir())
        == ["cache", "folder.csv", "text.txt", "there.csv"][not (tmp_path / "cache").exists() :]
    )
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_out_of_memory_is_one_line(
    saved: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hungry = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")
    fine = Instrument.check

    def check(self: Instrument, *rest: Any) -> float:
        gap = fine(self, *rest)
        branches_fail(monkeypatch, hungry, packed=True)
        return gap

    monkeypatch.setattr(Instrument, "check", check)
    done = excise(saved["olmoe"], "--text", text, "--window", 16, "-o", tmp_path / "e.csv")
    assert done.exit_code == 1
    assert "out of memory: not even one intervention fits" in done.stderr
    assert "Traceback" not in done.stderr


def test_falling_back_is_said(
    saved: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = measured(saved["olmoe"], text, tmp_path / "fast.parquet", "--layers", "1")

    branches_fail(monkeypatch, RuntimeError("no such mask"), packed=True)
    done = excise(
        saved["olmoe"],
        "--text",
        text,
        "--window",
        16,
        "--sequences",
        3,
        "--layers",
        "1",
        "-o",
        tmp_path / "slow.parquet",
        "--json",
    )
    assert "packing does not run on this model (no such mask)" in json.loads(done.stdout)["notes"][0]
    pd.testing.assert_frame_equal(
        fast, table(tmp_path / "slow.parquet"), check_exact=False, atol=1e-5, rtol=0
    )


def test_the_shortest_window_and_an_empty_table(saved: dict[str, Path], text: Path, tmp_path: Path) -> None:
    assert len(measured(saved["olmoe"], text, tmp_path / "e.csv", "--window", 2)) == 3 * 3 * 3
    ids = torch.tensor([load_tokenizer(saved["olmoe"])(TEXT, add_special_tokens=False)["input_ids"][:3]])
    clean = clean_forward(Instrument(dissect(load_network(saved["olmoe"], "float32"))), ids, Scope.SEQUENCE)
    never = next(e for e in range(8) if e not in clean.index[0][0, :-1])
    one = ("--window", 3, "--sequences", 1, "--layers", "0", "--experts", never)
    done = excise(saved["olmoe"], "--text", text, *one, "-o", tmp_path / "n.parquet", "--json")
    found = json.loads(done.stdout)
    assert (found["rows"], found["mean_delta"]) == (0, None)
    assert "none of these experts is active" in found["notes"][-1]


def test_cautions(saved: dict[str, Path], text: Path, tmp_path: Path) -> None:
    arguments = (
        "--window",
        200,
        "--sequences",
        1,
        "--layers",
        "2",
        "--scope",
        "corpus",
        "--json",
        "-o",
        tmp_path / "e.csv",
    )
    notes = json.loads(excise(saved["olmoe"], "--text", text, *arguments).stdout)["notes"]
    assert notes == ["a window of 200 tokens is longer than the 128 positions the model was made for"]
    done = CliRunner().invoke(
        app,
        list(
            map(
                str,
                (
                    "effects",
                    saved["olmoe"],
                    "--text",
                    text,
                    *arguments,
                    "--force",
                    "--dtype",
                    "bfloat16",
                    "--quiet",
                ),
            )
        ),
    )
    assert "measured in torch.bfloat16" in json.loads(done.stdout)["notes"][0]


def test_numbers() -> None:
    assert numbers("--layers", "0,2-4") == (0, 2, 3, 4)
    assert numbers("--layers", None) == ()


def test_layer_by_layer_it_is_the_same_table(saved: dict[str, Path], text: Path, tmp_path: Path) -> None:
    """States wait on disk, in a folder that is gone afterwards."""
    model = saved["olmoe"]
    expected = measured(model, text, tmp_path / "resident.parquet", "--memory", "resident")
    for name, options in {"own": (), "named": ("--spill", tmp_path / "spill")}.items():
        options = ("--memory", "streamed", "--memory-limit", "2MB", *options)
        pd.testing.assert_frame_equal(measured(model, text, tmp_path / f"{name}.parquet", *options), expected)
    assert not list(tmp_path.glob("*.partial"))
    assert not list((tmp_path / "spill").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--memory-limit", "much"), "--memory-limit 'much' is not a size"),
        (("--spill", "/proc/nope"), "--spill: nothing can be written to /proc/nope"),
        (("--memory", "streamed", "--memory-limit", "1kB"), "memory.limit is 1.00 kB; raise it to"),
    ],
)
def test_memory_that_cannot_be_had(
    options: tuple[str, ...], message: str, saved: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    done = excise(saved["olmoe"], "--text", text, "-o", tmp_path / "effects.csv", *options)
    assert done.exit_code == 1
    assert message in done.output
    assert not list(tmp_path.glob("effects*"))
