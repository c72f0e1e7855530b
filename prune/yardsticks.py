"""What a recipe measures plans by: the held-out loss, and its lm-eval tasks."""

import numpy as np

from experts.anatomy import load_tokenizer
from experts.errors import ExciseError
from experts.notes import tell
from prune.materials import Materials
from prune.recipe import Tasks
from prune.stages import key_of
from validate.null import LOSS, Yardstick
from validate.rows import LossEvaluator
from validate.statistics import documents_needed
from validate.verdict import ALPHA


def row_key(materials: Materials) -> str:
    """Identity of the raw rows of losses: model, precision, text."""
    recipe = materials.recipe
    return key_of("rows", materials.fingerprint, recipe.dtype, materials.validation.hash, recipe.validation.batch)


def yardsticks(materials: Materials, pairs: int = 0) -> list[Yardstick]:
    """The loss first, then a yardstick per task. pairs: differences between criteria that share α.

    Raises ExciseError for fewer items than a test needs; fewer documents than that still tell plans from chance, so they are a note.
    """
    settings, windows = materials.recipe.validation, materials.validation
    tests, documents = max(1, pairs), len(np.unique(windows.document))
    if pairs and documents < (needed := documents_needed(pairs, ALPHA)):
        tell(
            f"the validation text has {documents} documents: by loss no two criteria can be told apart, which takes {needed} after "
            f"Holm over {pairs} pairs; add text, or split it with `separator`"
        )
    tasks = _tasks(materials, settings.tasks, tests) if settings.tasks else []
    losses = LossEvaluator(materials.anatomy, windows, materials.folder.path / "losses.csv", row_key(materials), settings.batch)
    return [Yardstick(LOSS, "nats per token", losses, losses.weights, windows.document), *tasks]


def _tasks(materials: Materials, settings: Tasks, tests: int) -> list[Yardstick]:
    from validate.tasks import ItemEvaluator

    benchmark, needed = materials.benchmark, documents_needed(tests, ALPHA)
    for part in benchmark.parts:
        if part.items < needed:
            raise ExciseError(
                f"validate.tasks: {part.task} has {part.items} items; {tests} tests at α = 0.05 need at least {needed}; raise limit"
            )
    key = key_of("items", materials.fingerprint, materials.recipe.dtype, benchmark.hash, settings.batch)
    tokenizer = load_tokenizer(materials.prepared.source, materials.recipe.trust_remote_code)
    items = ItemEvaluator(materials.anatomy, benchmark, tokenizer, materials.folder.path / "items.csv", key, settings.batch)
    return [
        Yardstick(part.task, part.metric, items, np.ones(part.items), np.arange(part.items), -1, part.rows, settings.random_plans)
        for part in benchmark.parts
    ]
