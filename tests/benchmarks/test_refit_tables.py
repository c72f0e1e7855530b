"""The evidence on the refit: counted p, Holm, which random plans belong to a plan, and rows made once."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import experts
from benchmarks import refit_tables
from benchmarks.refit_markdown import chance, peers, tables
from benchmarks.refit_rows import Case, Rows, randoms_of

HEAD = {"model": "m", "seed": 0, "fraction": 0.5, "scope": "layer", "counts": "", "kept": [2, 2]}


def row(plan: str, before: float, after: float | None, refitted: str = "x", **changes: Any) -> dict[str, Any]:
    """A plan that costs as much in domain x as it is told, .2 more in domain y, .1 more over both."""
    chosen = "" if plan.startswith("random") else "x"
    found = {**HEAD, "plan": plan, "chosen": chosen, "refitted": refitted, **changes}
    for when, value in ("before", before), ("after", after):
        if value is not None:
            found[when] = {"x": [value, 0, 1], "y": [value + 0.2, 0, 1], "all": [value + 0.1, 0, 1]}
    return found


RANDOMS = [row(f"random {n}", 0.4 + n / 10, 0.1 + n / 10) for n in range(4)]


def test_chance_is_counted() -> None:
    """.55 before has two of four random plans below it: p = 3/5; .05 after has none: p = 1/5.

    Without a refit there is no p after it.
    """
    plan = row("reap", 0.55, 0.05)
    assert chance(plan, RANDOMS, "before") == 3 / 5
    assert chance(plan, RANDOMS, "after") == 1 / 5
    assert np.isnan(chance(row("reap", 0.55, None, ""), RANDOMS, "after"))


def test_peers_have_the_same_refit() -> None:
    """After a refit on x those refitted on x; before it every random plan, once."""
    others = [row("random 0", 0.4, 0.3, "y"), row("random 9", 0.4, None, "")]
    plan = row("reap", 0.5, 0.1)
    assert peers(plan, [*RANDOMS, *others], "after") == RANDOMS
    assert [one["plan"] for one in peers(plan, [*RANDOMS, *others], "before")] == [
        *[f"random {n}" for n in range(4)],
        "random 9",
    ]


def test_peers_in_scope_global_have_the_same_counts() -> None:
    plan = row("reap", 0.5, 0.1, scope="global", kept=[1, 3])
    own = row("random 0", 0.5, 0.1, scope="global", kept=[1, 3], counts="1,3")
    other = row("random 0", 0.5, 0.1, scope="global", kept=[3, 1], counts="3,1")
    assert peers(plan, [own, other], "after") == [own]


def test_table() -> None:
    """p after: .05 of `a` 1/5, .25 of `b` 3/5; Holm doubles the smaller one."""
    [table] = tables([row("a", 0.2, 0.05), row("b", 0.3, 0.25), *RANDOMS])
    lines = table.splitlines()
    assert lines[0] == "**m, 50% removed, scope layer, seed 0**"
    assert lines[4].startswith("| `a` | x | x | 0.200 → **0.050** [0.000, 1.000] | 0.400 → **0.250** ")
    assert lines[4].endswith("| 0.300 → **0.150** [0.000, 1.000] | 0.200 | 0.200 | 0.400 |")
    assert lines[5].endswith("| 0.400 → **0.350** [0.000, 1.000] | 0.200 | 0.600 | 0.600 |")
    assert lines[6].startswith("| 4 random |  | x | 0.550 → **0.250** ± 0.129 | 0.750 → **0.450** ± 0.129 |")


def test_random_plans_of_a_row() -> None:
    """In scope layer one set serves all plans; in scope global it has the counts of the plan."""
    case = Case("m", 0, 0.5, "layer", "x", "reap", "", "x")
    assert randoms_of(case, {"kept": [2, 2]}, 1) == [Case("m", 0, 0.5, "layer", "", "random 0", "", "x")]
    case = Case("m", 0, 0.5, "global", "x", "reap", "", "")
    assert randoms_of(case, {"kept": [1, 3]}, 1) == [Case("m", 0, 0.5, "global", "", "random 0", "1,3", "")]


def test_local_training_is_said_of_the_refit() -> None:
    """It belongs to a refit: a plan without one has none."""
    given = {"model": "m", "seed": 0, "fraction": [0.5], "scope": ["layer"], "criterion": ["reap"]}
    options = Namespace(**given, chosen=["x"], refitted=["same", "none", "y"], local=True)
    assert [case.refitted for case in refit_tables.cases_of(options)] == ["x, trained", "", "y, trained"]


def test_rows_come_back(tmp_path: Path) -> None:
    case = Case("m", 0, 0.5, "layer", "x", "reap", "", "x")
    Rows(tmp_path / "rows.jsonl").add(case, {"kept": [2, 2]})
    assert Rows(tmp_path / "rows.jsonl").known[case]["kept"] == [2, 2]


@pytest.mark.slow
@pytest.mark.usefixtures("demo_in_float32")
def test_measured_once(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refit gives something back; a second call takes all rows over and loads no model.

    A call that finds the unpruned model's row alone measures the same rises as the first.
    """
    rows = tmp_path / "rows.jsonl"
    measure = [
        "measure",
        "--data",
        str(shared / "data"),
        "--chosen",
        "code",
        "--criterion",
        "reap_sum",
        "--fraction",
        "0.75",
        "--randoms",
        "2",
    ]
    argv = ["refit_tables", str(rows), *measure, "--windows", "4", "--held-out-windows", "2"]
    monkeypatch.setattr(sys, "argv", argv)
    refit_tables.main()
    made = rows.read_text()
    [_, plan, first, second] = Rows(rows).known.values()
    for one in (plan, first, second):
        assert one["after"]["code"][0] < one["before"]["code"][0]
    rows.write_text(made.splitlines(keepends=True)[0])
    refit_tables.main()
    assert list(Rows(rows).known.values())[1]["before"] == plan["before"]
    monkeypatch.setattr(experts, "load", None)
    made = rows.read_text()
    refit_tables.main()
    assert rows.read_text() == made
    monkeypatch.setattr(sys, "argv", ["refit_tables", str(rows), "print"])
    refit_tables.main()
    assert "| 2 random |  | code |" in capsys.readouterr().out
