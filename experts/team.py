"""Work on a model that several processes share.

A team maps a function over arguments. Every rank calls it with a model of its own and its arguments; alone,
one process calls it with all arguments in turn. The results are the same bytes.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from experts.errors import ExciseError, one_line
from experts.ranks import Ranks

Result = TypeVar("Result")
Item = TypeVar("Item")
_NOTHING: Any = object()


class Team(Protocol):
    """Processes that have the same model."""

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def map(
        self, anatomy: Any, function: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]
    ) -> list[Result]:
        """Return function(anatomy, *arguments[i]) for every i.

        Args:
            anatomy: the model of this process (experts.anatomy.Anatomy)
            function: of a module, so that other processes find it by its name; it returns no tensors on GPUs
            arguments: at most one tuple per process
        """
        ...


class Alone:
    """A team of one."""

    size = 1

    def map(
        self, anatomy: Any, function: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]
    ) -> list[Result]:
        return [function(anatomy, *given) for given in arguments]


@dataclass(frozen=True)
class _Task:
    """What a rank is asked for. load: makes its model; None as function = stop."""

    load: Callable[[], Any] | None = None
    function: Callable[..., Any] | None = None
    arguments: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class _Failure:
    """Why a rank has no result."""

    line: str


class Together:
    """A team of several processes, as rank 0 sees it.

    Args:
        ranks: the processes
        load: makes the model on another rank; it can be pickled
    """

    def __init__(self, ranks: Ranks, load: Callable[[], Any]) -> None:
        self.ranks, self.load = ranks, load
        self.size = ranks.size

    def map(
        self, anatomy: Any, function: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]
    ) -> list[Result]:
        assert len(arguments) <= self.size, "one for each rank"
        missing = [None] * (self.size - len(arguments))
        tasks = [_Task(self.load, function, given) for given in [*arguments, *missing]]
        self.ranks.hand_out(tasks)
        own = function(replace(anatomy, team=Alone()), *arguments[0]) if arguments else None
        results = self.ranks.collect(own)[: len(arguments)]
        for rank, result in enumerate(results):
            if isinstance(result, _Failure):
                raise ExciseError(f"rank {rank} of {self.size}: {result.line}")
        return results


def deal(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Deal items like cards: the first hand gets the items 0, size, 2·size, …; empty hands are left out."""
    return [list(items[hand::size]) for hand in range(min(size, len(items)))]


def undeal(hands: Sequence[Iterable[Item]]) -> list[Item]:
    """The items of `deal`, or what was made of them one by one, in their old order."""
    rounds = itertools.zip_longest(*hands, fillvalue=_NOTHING)
    return [item for items in rounds for item in items if item is not _NOTHING]


def blocks(count: int, block: int, size: int) -> list[tuple[int, int]]:
    """Cut 0..count into at most `size` ranges of neighbours, start and stop, each of whole blocks."""
    whole = -(-count // block)
    each, more = divmod(whole, size)
    ranges, start = [], 0
    for hand in range(min(size, whole)):
        stop = min(count, start + block * (each + (hand < more)))
        ranges.append((start, stop))
        start = stop
    return ranges


def serve(ranks: Ranks) -> None:
    """Do what rank 0 hands out, until it says stop. Called on every other rank."""
    models: dict[Any, Any] = {}
    while True:
        task = ranks.hand_out(None)
        if task.load is None:
            ranks.leave()  # its threads would abort the process at its end
            return
        ranks.collect(_result(task, models))


def dismiss(ranks: Ranks) -> None:
    """Let the other ranks stop. Called on rank 0, where it is not inside an exchange."""
    if not ranks.busy:
        ranks.hand_out([_Task()] * ranks.size)
        ranks.leave()


def _result(task: _Task, models: dict[Any, Any]) -> Any:
    """What the function returns; a line for what it raises, because rank 0 has to end all."""
    if task.arguments is None or task.load is None or task.function is None:
        return None
    try:
        if task.load not in models:
            models.clear()  # never two models in memory
            models[task.load] = task.load()
        return task.function(models[task.load], *task.arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, rank 0 says it
        return _Failure(one_line(error))
