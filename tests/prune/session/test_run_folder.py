"""A stage of a folder belongs to the inputs it was made from: interrupted, damaged or made by other libraries
it is made again.
"""

import json
from pathlib import Path

import pytest

from criteria import calibration as calibration_module
from experts import model as model_module
from experts.errors import ExciseError
from prune.session.run_folder import RunFolder
from tests.support.interruptions import audit, killed, numbers, run
from tests.support.recipes import invoke
from validate.rows import LossEvaluator


def test_a_stage_that_was_interrupted_belongs_to_nothing(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is the new one and its record the old one: with the old settings the old numbers are measured
    again, not the new ones shown.
    """
    first = run(recipe_path, tmp_path / "run")
    killed(
        monkeypatch,
        lambda: run(recipe_path, tmp_path / "run", "validate.random_seed=1"),
        RunFolder,
        "finish",
        lambda *a: a[1] == "validate",
    )
    assert json.loads((tmp_path / "run" / "validation.json").read_text())["plans"] != first["plans"]
    assert numbers(run(recipe_path, tmp_path / "run")) == numbers(first)


@pytest.mark.slow
def test_effects_of_an_audit_that_was_interrupted(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = (
        "validate.audit.positions=20",
        "validate.audit.layers=[0]",
        "validate.sequences=1",
        "criteria=[reap]",
    )
    first, other = audit(recipe_path, tmp_path / "run", *sets), (*sets, "validate.audit.mode=renormalize")
    killed(
        monkeypatch,
        lambda: audit(recipe_path, tmp_path / "run", *other),
        RunFolder,
        "finish",
        lambda *a: a[1] == "audit",
    )
    assert audit(recipe_path, tmp_path / "run", *sets) == first
    assert audit(recipe_path, tmp_path / "run", *other)["cells"] != first["cells"]


def test_a_result_that_cannot_be_read_is_made_again(recipe_path: Path, tmp_path: Path) -> None:
    first = run(recipe_path, tmp_path / "run")
    for damage in ("{", "[]"):
        (tmp_path / "run" / "validation.json").write_text(damage)
        assert numbers(run(recipe_path, tmp_path / "run")) == numbers(first)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("loss", None, "loss is null"),
        ("loss", "missing", "loss is missing"),
        ("plans", {}, "plans is a table"),
        ("shared_documents", True, "shared_documents is True"),
    ],
)
def test_a_result_with_another_content_is_refused(
    key: str, value: object, message: str, recipe_path: Path, tmp_path: Path
) -> None:
    """It was edited, or is another version's: its file and key are named, and how to go on."""
    out, file = tmp_path / "run", tmp_path / "run" / "validation.json"
    assert invoke("prune", recipe_path, "-o", out).exit_code == 0
    result = json.loads(file.read_text())
    result[key] = value
    if value == "missing":
        del result[key]
    file.write_text(json.dumps(result))
    refused = invoke("prune", recipe_path, "-o", out)
    assert refused.exit_code == 1
    assert f"excise: {file}: {message}; delete the file, and it is made again\n" in refused.stderr
    file.unlink()
    assert invoke("prune", recipe_path, "-o", out).exit_code == 0


def test_keys_of_other_stages_are_texts(tmp_path: Path) -> None:
    (tmp_path / "stages.json").write_text('{"validate": 1}')
    with pytest.raises(ExciseError, match="damaged"):
        RunFolder(tmp_path)


@pytest.mark.slow
def test_rows_belong_to_what_made_them(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibration, experiments and losses are not mixed over versions, nor over whose model code ran."""
    settings = ("criteria=[gradient]", "validate.sequences=2")

    def measured(*more: str) -> int:
        calls: list[int] = []
        losses = LossEvaluator.measure
        with monkeypatch.context() as counting:
            for name in ("observe", "measure"):
                work = getattr(calibration_module, name)
                counting.setattr(
                    calibration_module, name, lambda *a, work=work: (calls.append(1), work(*a))[1]
                )
            counting.setattr(
                LossEvaluator,
                "measure",
                lambda self, anatomy, plans: (calls.extend([1] * len(plans)), losses(self, anatomy, plans))[
                    1
                ],
            )
            run(recipe_path, tmp_path / "run", *settings, *more)
        return len(calls)

    assert measured() == 1 + 1 + 23
    assert measured() == 0
    assert measured("trust_remote_code=true") == 25
    monkeypatch.setattr(model_module, "libraries", lambda: ("torch 9.9",))
    assert measured() == 25


@pytest.mark.slow
def test_searches_of_an_older_version_are_not_used(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may have been interrupted, and then they are wrong under the right key."""
    searched: list[str] = []
    work = calibration_module.measure
    monkeypatch.setattr(calibration_module, "measure", lambda m, s: (searched.append(m.kind), work(m, s))[1])
    sets = ("criteria=['causal_greedy:start=reap,shortlist=4,step=4,windows=1']", "validate.sequences=2")
    run(recipe_path, tmp_path / "a", *sets)
    run(recipe_path, tmp_path / "b", *sets)
    assert searched == ["greedy"]
    monkeypatch.setattr(calibration_module, "VERSION", 1)
    run(recipe_path, tmp_path / "c", *sets)
    assert searched == ["greedy", "greedy"]
