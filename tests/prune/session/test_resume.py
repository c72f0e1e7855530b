"""A folder that was killed in, and is gone on in with other settings, ends with exactly the numbers of a
fresh one.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experts.errors import ExciseError
from experts.plan import Plan
from finetune import recovery as recover_module
from prune.checkpoint.write import export
from prune.recipe.read import read_recipe
from prune.recover import recovered_folder
from prune.recover import students as students_module
from prune.run.pipeline import Run
from prune.session.prepare import prepare
from tests.support import tiny
from tests.support.interruptions import killed, numbers, run, without_time
from tests.support.tasks import task_file

SHORT = (
    "finetune.steps=2",
    "finetune.measure=1",
    "finetune.save_steps=50",
    "finetune.sequences=8",
    "validate.sequences=4",
)
DISK = (*SHORT, "finetune.teacher.keep=disk")


def in_training(name: str) -> Callable[..., bool]:
    return lambda job, *_: job.folder.name == name


# Recovery.


@pytest.mark.slow
def test_recovery_after_a_kill_with_other_settings(
    recovery_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while a random plan trains, its pruned checkpoint on disk: other random plans, text or teacher
    are what is measured.
    """
    killed(
        monkeypatch,
        lambda: run(recovery_recipe, tmp_path / "killed", *DISK),
        recover_module,
        "_train",
        in_training("random-1"),
    )
    assert (tmp_path / "killed" / "recovery" / "random-1-pruned").is_dir()
    for number, changes in enumerate(
        (["validate.random_seed=1"], ["validate.seed=1", "finetune.teacher.top_k=3"])
    ):
        fresh = run(recovery_recipe, tmp_path / f"fresh-{number}", *DISK, *changes)
        shutil.copytree(tmp_path / "killed", tmp_path / f"on-{number}")
        assert numbers(
            run(recovery_recipe, tmp_path / f"on-{number}", *DISK, *changes, force=number > 0)
        ) == numbers(fresh), changes
        assert not list((tmp_path / f"on-{number}" / "recovery").glob("*-pruned"))


def test_a_folder_of_that_name_is_not_yet_that_plan(
    recovery_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the fault did: experts 8 to 15 were asked for, and 0 to 7 stood in memory."""
    prepared = prepare(read_recipe(recovery_recipe, DISK), tmp_path / "run")
    session, folder = Run(prepared).session, tmp_path / "recovery" / "random-0"
    keep = {"asked": (4, 5, 6, 7), "written": (0, 1, 2, 3)}
    plans = {
        name: Plan(8, dict.fromkeys((0, 1, 2), ids), prepared.fingerprint, name) for name, ids in keep.items()
    }
    settings = prepared.recipe.finetune
    assert settings is not None
    source = students_module.FromDisk(
        session,
        settings.model_copy(update={"kl": 0.0}),
        session.texts.training,
        tmp_path / "none",
        plans["written"],
    )
    export(prepared.layout, plans["written"], tmp_path / "recovery" / "random-0-pruned")
    with source.student(plans["asked"], folder) as student:
        rows = student.anatomy.layers[0].router.weight
        stored = load_file(prepared.source / "model.safetensors")["model.layers.0.mlp.gate.weight"]
        assert torch.equal(rows, stored[4:8])
    shutil.copytree(prepared.source, tmp_path / "none")
    with (
        pytest.raises(ExciseError, match=r"none: no excise_plan\.json"),
        source.student(plans["written"], folder),
    ):
        pass


@pytest.mark.slow
def test_there_and_back_again(recovery_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of folders are used again by other plans: the curves, adapters and checkpoints of the first are
    not the second's.
    """
    first = run(recovery_recipe, tmp_path / "run", *SHORT)
    kept = {
        name: (tmp_path / "run" / name).read_bytes()
        for name in ("healing.csv", "recovered/model.safetensors", "validation.json")
    }

    def back() -> None:
        assert numbers(run(recovery_recipe, tmp_path / "run", *SHORT, force=True)) == numbers(first)
        for name in ("recovered/model.safetensors", "validation.json"):
            assert (tmp_path / "run" / name).read_bytes() == kept[name], name

    other = (*SHORT, "validate.random_seed=1")
    killed(
        monkeypatch,
        lambda: run(recovery_recipe, tmp_path / "run", *other),
        recover_module,
        "_train",
        in_training("random-1"),
    )
    back()
    trained = (*SHORT, "finetune.learning_rate=0.02")
    with pytest.raises(ExciseError, match="holds the result of another training"):
        run(recovery_recipe, tmp_path / "run", *trained)
    again = lambda: run(recovery_recipe, tmp_path / "run", *trained, force=True)  # noqa: E731
    killed(monkeypatch, again, recovered_folder.shutil, "copytree", lambda *_: True)
    with pytest.raises(ExciseError, match="holds the result of another training"):
        run(recovery_recipe, tmp_path / "run", *SHORT)
    back()


@pytest.mark.slow
def test_what_auto_chose_stays_chosen(
    recovery_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less memory is free when an interrupted training goes on: that is no other training, and nothing is
    refused.
    """
    whole = run(recovery_recipe, tmp_path / "whole", *SHORT)
    killed(
        monkeypatch,
        lambda: run(recovery_recipe, tmp_path / "run", *SHORT),
        recover_module,
        "_train",
        in_training("random-0"),
    )
    monkeypatch.setattr(students_module, "_fits", lambda *_: False)
    assert numbers(run(recovery_recipe, tmp_path / "run", *SHORT)) == numbers(whole)


@pytest.mark.slow
def test_what_the_report_says_depends_on_all_that_was_asked(recovery_recipe: Path, tmp_path: Path) -> None:
    """Fewer random plans behind a task, a moved folder, another teacher of the same name: nothing old is
    shown.
    """
    tasks = f"validate.tasks={{names: [guess], include: {task_file(tmp_path / 'tasks')}, random_plans: 6}}"
    first = run(recovery_recipe, tmp_path / "run", *SHORT, tasks)["recovery"]
    fewer = run(recovery_recipe, tmp_path / "run", *SHORT, tasks.replace("plans: 6", "plans: 5"))["recovery"]
    counts = [len(found["leads"][1]["before"]["random"]["values"]) for found in (first, fewer)]
    assert counts == [6, 5]
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = run(recovery_recipe, tmp_path / "moved", *SHORT, tasks.replace("plans: 6", "plans: 5"))[
        "recovery"
    ]
    assert {moved[name] for name in ("run", "checkpoint", "adapter")} == {
        str(tmp_path / "moved" / name) for name in ("", "recovered", "adapter")
    }
    assert without_time(moved) == without_time(fewer)


@pytest.mark.slow
def test_a_teacher_is_known_by_its_weights(recovery_recipe: Path, tmp_path: Path) -> None:
    own = (
        *SHORT,
        "finetune.random_plans=0",
        f"finetune.teacher.model={tmp_path / 'teacher'}",
        "finetune.ce=0",
    )
    found = []
    for seed, folder in ((3, "run"), (4, "run"), (4, "fresh")):
        tiny.save(tiny.build("olmoe", seed=seed), tmp_path / "teacher")
        found.append(
            run(recovery_recipe, tmp_path / folder, *own, force=True)["recovery"]["plans"][0]["measures"][0][
                "after"
            ]
        )
    assert found[0] != found[1] == found[2]
