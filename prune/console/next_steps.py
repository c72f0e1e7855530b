"""What a user does after `excise prune`: load, serve, compare."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prune.run.result import PruneResult
    from prune.session.prepared import Prepared

BESIDE = "utilization"  # a second criterion for a comparison, where the recipe has one alone


def next_steps(result: "PruneResult", prepared: "Prepared", recipe: str | None) -> None:
    """Three lines below the table.

    Args:
        result: of a finished run.
        recipe: the recipe as it was named; None = the one in the run folder says more.
    """
    print("next:")
    recovery, checkpoint = result["recovery"], result["checkpoint"]
    if checkpoint is not None:
        folder = recovery["checkpoint"] if recovery else checkpoint
        for name, line in _use(folder, set(result["plans"][0]["kept_per_layer"].values())):
            print(f"  {name:<8}{line}")
    print(f"  {'compare':<8}{_comparison(prepared, recipe)}")


def _use(folder: str, counts: set[int]) -> list[tuple[str, str]]:
    """How to load and to serve a checkpoint with so many experts per layer."""
    call = "AutoModelForCausalLM.from_pretrained"
    imported = ("load", "from transformers import AutoModelForCausalLM")
    if len(counts) == 1:
        load = f'model = {call}("{folder}", dtype="auto")'
        serve = f"transformers serve {folder}   (pip install 'transformers[serving]'; vllm serve: untried)"
        return [imported, ("", load), ("serve", serve)]
    load = f'model = {call}("{folder}", dtype="auto", trust_remote_code=True)'
    serve = "engines want equal counts in all layers: prune with scope: layer to serve"
    return [imported, ("", load), ("serve", serve)]


def _comparison(prepared: "Prepared", recipe: str | None) -> str:
    """A command that can come to a verdict: more tests take more random plans."""
    from validate.statistics import random_plans_needed
    from validate.verdict import ALPHA, Null

    own, settings = prepared.recipe, prepared.recipe.validation
    run = prepared.folder.path
    command = f"excise compare {recipe}" if recipe else f"excise compare {run}/recipe.yaml -o {_beside(run)}"
    criteria = len(own.criteria)
    if criteria == 1:
        other = BESIDE if own.criteria[0] != BESIDE else "reap"
        command += f" --set 'criteria=[{own.criteria[0]}, {other}]'"
        criteria = 2
    needed = random_plans_needed(criteria * len(prepared.compared), ALPHA)
    if settings.chance is not Null.COUNTED:
        return command
    if settings.random_plans < needed:
        command += f" --set validate.random_plans={needed}"
    if settings.tasks and (settings.tasks.random_plans or needed) < needed:
        command += f" --set validate.tasks.random_plans={needed}"
    return command


def _beside(run: Path) -> str:
    return f"{run}-compare"
