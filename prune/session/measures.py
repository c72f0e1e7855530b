"""What a recipe measures plans by: the held-out loss, and its lm-eval tasks."""

import numpy as np

from experts.errors import ExciseError
from experts.notes import tell
from prune.recipe.schema import Tasks
from prune.session.run_folder import key_of
from prune.session.session import Materials
from validate.null import LOSS, Yardstick
from validate.rows import LossEvaluator
from validate.statistics import documents_needed
from validate.verdict import ALPHA


def row_key(materials: Materials) -> str:
    """Identity of the raw rows of losses: model, precision, text."""
    return key_of("rows", materials.loaded, materials.validation.hash, materials.recipe.validation.batch)


def check_rows(materials: Materials, pairs: int = 0) -> None:
    """Enough rows for the tests that are asked for? pairs: differences between criteria that share α.

    Raises ExciseError for fewer items than a test needs; fewer documents still tell plans from chance, so they are a note.
    """
    tests = max(1, pairs)
    needed = documents_needed(tests, ALPHA)
    for part in materials.benchmark.parts if materials.recipe.validation.tasks else ():
        if part.items < needed:
            has = f"validate.tasks: {part.task} has {part.items} items"
            raise ExciseError(f"{has}; {tests} tests at α = {ALPHA} need at least {needed}; raise limit, or take a longer task")
    documents = len(np.unique(materials.validation.document))
    if pairs and documents < needed:
        tell(
            f"the validation text has {documents} documents: by loss no two criteria can be told apart, which takes {needed} after "
            f"Holm over {pairs} pairs; add text, or split it with `separator`"
        )


def yardsticks(materials: Materials, prefix: str = "", recovery: str = "") -> list[Yardstick]:
    """The loss first, then a yardstick per task. prefix: of the files of raw rows; recovery: identity of a training, for plans after it."""
    settings, windows = materials.recipe.validation, materials.validation
    tasks = _tasks(materials, settings.tasks, prefix, recovery) if settings.tasks else []
    path, key = materials.folder.path / f"{prefix}losses.csv", _after(row_key(materials), recovery)
    losses = LossEvaluator(materials.anatomy, windows, path, key, settings.batch)
    return [Yardstick(LOSS, "nats per token", losses, losses.weights, windows.document), *tasks]


def _after(key: str, recovery: str) -> str:
    return key_of(key, recovery) if recovery else key


def _tasks(materials: Materials, settings: Tasks, prefix: str, recovery: str) -> list[Yardstick]:
    from validate.tasks import ItemEvaluator  # lm-eval takes seconds to import

    benchmark = materials.benchmark
    path = materials.folder.path / f"{prefix}items.csv"
    key = _after(key_of("items", materials.loaded, materials.asked, settings.batch), recovery)
    items = ItemEvaluator(materials.anatomy, benchmark, materials.tokenizer(), path, key, settings.batch)
    return [
        Yardstick(part.task, part.metric, items, np.ones(part.items), np.arange(part.items), -1, part.rows, settings.random_plans)
        for part in benchmark.parts
    ]
