"""What `memory` of a recipe forbids is refused in one line, before any work."""

from pathlib import Path

import pytest
import torch

import experts
import finetune
from experts.errors import ExciseError
from experts.memory_settings import MemorySettings
from prune.recipe.read import read_recipe
from prune.run.pipeline import Run
from prune.session.prepare import prepare
from tests.support.inputs import uniform_plan, windows
from tests.support.recipes import invoke
from tests.support.tasks import writing_task

STREAMED = ("--set", "memory.model=streamed")
WHOLE = "needs the whole model in memory, and it is streamed"


@pytest.mark.parametrize("command", ["prune", "finetune"])
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_recovery_of_a_streamed_model(
    command: str, more: tuple[str, ...], recovery_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = invoke(command, str(recovery_recipe), "-o", str(out), *STREAMED, *more)
    assert done.exit_code == 1
    assert f"recovery (finetune) {WHOLE}" in done.stderr
    assert not out.exists()


def test_recovery_in_python(saved: dict[str, Path]) -> None:
    model = experts.load(saved["olmoe"], memory="streamed")
    plan = uniform_plan((0, 1, 2))
    with (
        pytest.raises(ExciseError, match=f"recovery {WHOLE}"),
        finetune.recover(model, plan, windows(2, 16), held_out=windows(2, 12)),
    ):
        pass


def test_tasks_in_which_the_model_writes(recipe_path: Path, tmp_path: Path) -> None:
    """Before calibration: nothing is there afterwards."""
    tasks = writing_task(tmp_path / "tasks")
    named = f"validate.tasks={{names: [guess], include: {tasks}, limit: 8, random_plans: 5}}"
    settings = (named, "memory.model=streamed")
    run = Run(prepare(read_recipe(recipe_path, settings), tmp_path / "run"))
    with pytest.raises(ExciseError, match=rf"writing text \(guess of validate.tasks\) {WHOLE}"):
        run.execute()
    assert not (tmp_path / "run" / "scores.safetensors").exists()


@pytest.mark.parametrize("command", ["prune", "compare", "audit"])
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("memory.spill=/proc/nope", "memory.spill: nothing can be written to /proc/nope (No such file"),
        ("memory.spill=/dev/null", "memory.spill: nothing can be written to /dev/null (Not a directory)"),
        ("memory={limit: 1kB}", "memory.limit is 1.00 kB; raise it to"),
        ("memory={model: resident, limit: 1kB}", "the weights take"),
    ],
)
def test_memory_that_cannot_be_had(
    command: str, more: tuple[str, ...], setting: str, message: str, recipe_path: Path, tmp_path: Path
) -> None:
    settings = ("--set", setting, "--set", "validate.random_plans=99")
    done = invoke(command, str(recipe_path), "-o", str(tmp_path / "run"), *settings, *more)
    assert done.exit_code == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "scores.safetensors").exists()


def test_the_folder_of_a_run_that_spills_elsewhere_is_its_own(recipe_path: Path, tmp_path: Path) -> None:
    """It is gone when the run has finished; what others have there stays."""
    spill = tmp_path / "spill"
    spill.mkdir()
    (spill / "other").touch()
    settings = (f"memory={{model: streamed, limit: 2MB, spill: {spill}}}",)
    Run(prepare(read_recipe(recipe_path, settings), tmp_path / "run")).execute()
    assert [path.name for path in spill.iterdir()] == ["other"]


def test_a_spill_folder_in_python(saved: dict[str, Path]) -> None:
    with pytest.raises(ExciseError, match="memory: spill: nothing can be written to /proc/nope"):
        experts.load(saved["olmoe"], memory=MemorySettings("streamed", spill=Path("/proc/nope")))


def test_a_plain_forward_of_a_streamed_network(saved: dict[str, Path]) -> None:
    model = experts.load(saved["olmoe"], memory="streamed")
    with pytest.raises(ExciseError, match='a streamed model has no weights .* memory="resident"'):
        model.network(torch.ones(1, 4, dtype=torch.long))


def test_a_device_that_is_not_there(saved: dict[str, Path]) -> None:
    for device in ("cuda:99", "nowhere"):
        with pytest.raises(ExciseError, match=f"device '{device}': expected cpu, cuda or cuda:0"):
            experts.load(saved["olmoe"], device=device)
