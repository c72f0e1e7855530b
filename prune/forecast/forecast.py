"""The forecast of a command, from a checked recipe: no weights, no torch, and nothing is written."""

from pathlib import Path

from prune.checkpoint.rehearsal import trial_plans
from prune.checkpoint.slices import pruned_size
from prune.forecast.memory import memory
from prune.forecast.result import DiskJson, ForecastJson, ForecastTextJson
from prune.forecast.seconds import seconds_of
from prune.forecast.stages import stages_of
from prune.machine import free_disk
from prune.recipe.schema import TextSettings
from prune.session.domain_verdicts import domain_notes
from prune.session.prepared import Checked
from prune.session.speed import known_speeds

WRITES = {
    "prune": [
        "recipe.yaml",
        "environment.json",
        "scores.safetensors",
        "plan.json",
        "losses.csv",
        "validation.json",
        "report.md",
        "checkpoint/",
    ],
    "compare": ["environment.json", "comparison.json", "comparison.csv", "comparison.md", "losses.csv"],
    "audit": [
        "environment.json",
        "audit.json",
        "audit.csv",
        "audit.md",
        "positions.csv",
        "effects.parquet",
    ],
}
RECOVERY = ["recovery.json", "recovery.md", "healing.csv", "recovered_losses.csv", "adapter/", "recovered/"]


def forecast(command: str, checked: Checked) -> ForecastJson:
    """What a command will do with a checked recipe."""
    stages = stages_of(command, checked)
    speeds = known_speeds(checked.layout.checkpoint, checked.folder.path)
    seconds, source = seconds_of(stages, speeds, checked.recipe)
    return {
        "command": command,
        "model": {
            "name": checked.model.pinned,
            "size": checked.layout.checkpoint.size,
            "download": checked.model.needed() + (checked.teacher.needed() if checked.teacher else 0),
        },
        "texts": _texts(command, checked),
        "stages": stages,
        "writes": _writes(command, checked),
        "memory": memory(command, checked),
        "disk": _disk(command, checked),
        "seconds": seconds,
        "seconds_from": source,
        "notes": _notes(command, checked),
    }


def _texts(command: str, checked: Checked) -> list[ForecastTextJson]:
    recipe = checked.recipe
    texts = [_text("calibration", recipe.calibration), _text("validation", recipe.validation)]
    if recipe.refit and recipe.refit.text:
        texts.append(_text("refit", recipe.refit.text))
    if recipe.finetune and command in ("prune", "finetune"):
        texts.append(_text("training", recipe.finetune))
    return texts


def _text(part: str, settings: TextSettings) -> ForecastTextJson:
    sources: list[str] = []
    for source in settings.data:
        files = ", ".join(map(str, (*source.text, *source.jsonl)))
        if source.sampled:
            sources.append(source.sampled.words)
            continue
        named = source.dataset or (f"stdlib {source.stdlib}" if source.stdlib else files)
        sources.append(f"{named} ({source.split})" if source.split else named)
    return {
        "part": part,
        "windows": settings.sequences,
        "length": settings.length,
        "sources": sources,
    }


def _writes(command: str, checked: Checked) -> list[str]:
    """Files and folders in the run folder, of which the largest are checkpoints."""
    recipe = checked.recipe
    from_folder = recipe.finetune is not None and recipe.finetune.checkpoint is not None
    if command == "finetune" and from_folder:
        return ["environment.json", "losses.csv", *RECOVERY]
    files = list(WRITES["prune" if command == "finetune" else command])
    if command == "audit" and recipe.validation.progressive:
        files.append("progressive.csv")
    if command in ("prune", "compare", "finetune") and recipe.validation.tasks:
        files.append("items.csv")
    if command in ("prune", "compare") and recipe.refit:
        files += [f"refitted_{name}" for name in ("losses.csv", "items.csv") if name in files]
    if command != "audit" and recipe.prune.counts == "refitted":
        files.append("allocation.csv")
    if command in ("prune", "finetune") and recipe.finetune:
        files += RECOVERY
    return files


def _disk(command: str, checked: Checked) -> DiskJson:
    folder = checked.folder.path
    return {
        "run": str(folder),
        "checkpoint": _checkpoint(command, checked),
        "refit": checked.refit_room() if command in ("prune", "finetune") else 0,
        "free": free_disk(Path(folder)),
    }


def _checkpoint(command: str, checked: Checked) -> int | None:
    """Bytes of the checkpoints: the pruned one, and after recovery the recovered one too."""
    if command not in ("prune", "finetune"):
        return None
    plan = trial_plans(checked.shape, checked.budgets[checked.recipe.prune.scope])[0]
    size = pruned_size(checked.layout, plan, dequantise=checked.dequantises)
    finetune = checked.recipe.finetune
    pruned_already = finetune is not None and finetune.checkpoint is not None
    return size * 2 if finetune and not pruned_already else size


def _notes(command: str, checked: Checked) -> list[str]:
    finetune = checked.recipe.finetune
    if command == "compare":
        return [*checked.merged, *domain_notes(checked)]
    if command == "audit" or (command == "finetune" and finetune is not None and finetune.checkpoint):
        return []
    return [
        *checked.budgets[checked.recipe.prune.scope].notes(checked.shape.num_layers),
        *domain_notes(checked),
    ]
