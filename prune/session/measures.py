"""What a recipe measures plans by: the held-out loss, and its lm-eval tasks."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.errors import ExciseError
from experts.keys import key_of
from experts.notes import tell
from experts.plan import Plan
from prune.session.session import Session
from prune.session.speed import Speed, keep_speed, this_machine
from validate.measure import Measure, loss_measure
from validate.rows import LossEvaluator
from validate.statistics import documents_needed
from validate.verdict import ALPHA

if TYPE_CHECKING:
    from validate.tasks import ItemEvaluator

MakeItems = Callable[[Any, Any, Path, str, int], "ItemEvaluator"]


class TimedLosses(LossEvaluator):
    """Held-out losses of a session's plans, and how fast they come: the forecast of the next run reads it.

    Attributes:
        session: the recipe at work
        seconds: that all plans took so far
        plans: that were measured so far
    """

    def __init__(self, session: Session, path: Path, key: str) -> None:
        self.session, self.seconds, self.plans = session, 0.0, 0
        super().__init__(session.texts.validation, path, key, session.recipe.validation.batch)

    def measure(self, anatomy: Anatomy, plans: Sequence[Plan | None]) -> Iterator[Array]:
        began = _working_time(anatomy)
        for losses in super().measure(anatomy, plans):
            self.seconds += _working_time(anatomy) - began
            self.plans += 1
            self._keep_speed(anatomy.device)
            yield losses
            began = _working_time(anatomy)

    def _keep_speed(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if on_gpu else f"CPU, threads: {torch.get_num_threads()}"
        speed: Speed = {
            "windows": self.plans * len(self.windows),
            "seconds": self.seconds,
            "machine": this_machine(),
            "device": name,
            "dtype": self.session.recipe.dtype,
            "batch": self.batch,
            "length": self.session.recipe.validation.length,
        }
        keep_speed(self.session.prepared.layout.checkpoint, self.session.folder.path, speed)


def _working_time(anatomy: Anatomy) -> float:
    """A clock that stands still while layers are read."""
    return time.perf_counter() - anatomy.weights.seconds


def row_key(session: Session) -> str:
    """Identity of the raw rows of losses: model, precision, text."""
    return key_of(
        "rows", session.model.identity, session.texts.validation.hash, session.recipe.validation.batch
    )


def check_rows(session: Session, pairs: int = 0) -> None:
    """Enough rows for the tests that are asked for? pairs: differences between criteria that share α.

    Raises ExciseError for fewer items than a test needs; fewer documents still tell plans from chance, so
    they are a note.
    """
    tests = max(1, pairs)
    needed = documents_needed(tests, ALPHA)
    for part in session.benchmark.parts if session.recipe.validation.tasks else ():
        if part.items < needed:
            has = f"validate.tasks: {part.task} has {part.items} items"
            raise ExciseError(
                f"{has}; {tests} tests at α = {ALPHA} need at least {needed}; "
                "raise limit, or take a longer task"
            )
    documents = len(np.unique(session.texts.validation.document))
    if pairs and documents < needed:
        tell(
            f"the validation text has {documents} documents: "
            f"by loss no two criteria can differ significantly, "
            f"which takes {needed} after Holm over {pairs} pairs; add text, or split it with `separator`"
        )


def measures_of(session: Session, prefix: str = "", recovery: str = "") -> list[Measure]:
    """The loss first, then a measure per task.

    Args:
        session: the recipe at work
        prefix: of the files of raw rows
        recovery: identity of a training, for plans after it
    """
    settings = session.recipe.validation
    tasks = tasks_of(session, prefix, recovery) if settings.tasks else []
    path, key = session.folder.path / f"{prefix}losses.csv", _after(row_key(session), recovery)
    losses = TimedLosses(session, path, key)
    return [loss_measure(losses), *tasks]


def _after(key: str, recovery: str) -> str:
    return key_of(key, recovery) if recovery else key


def tasks_of(session: Session, prefix: str, recovery: str, make: MakeItems | None = None) -> list[Measure]:
    """A measure per task of a recipe that has some.

    Args:
        session: the recipe at work
        prefix: of the files of raw rows
        recovery: identity of what was done to the plans, for plans after it
        make: of the evaluator; None = plans as they are
    """
    from validate.tasks import ItemEvaluator  # lm-eval takes seconds to import

    benchmark, settings = session.benchmark, session.recipe.validation.tasks
    assert settings is not None, "asked for only where there are some"
    path = session.folder.path / f"{prefix}items.csv"
    key = _after(key_of("items", session.model.identity, session.tasks_identity, settings.batch), recovery)
    items = (make or ItemEvaluator)(benchmark, session.model.new_tokenizer(), path, key, settings.batch)
    return [
        Measure(
            part.task,
            part.metric,
            items,
            np.ones(part.items),
            np.arange(part.items),
            -1,
            part.rows,
            settings.random_plans,
        )
        for part in benchmark.parts
    ]
