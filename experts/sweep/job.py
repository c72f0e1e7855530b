"""A job: what a sweep over the decoder layers is for."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from experts.arrays import Array
from experts.decoder import Part
from experts.sweep.branch import Branch
from experts.sweep.record import CleanForward


class Job:
    """Batches of windows, what is watched or changed while they run, and the branches born from them.

    Where branches wait for room the clean forward runs again in some layers: `around`, `arrived` and the
    branches' results then come once more, with the same numbers.

    Attributes:
        title: beside the progress bar
        head: whether logits of the clean forward are needed
        branches: whether branches are born
        clean_until: MoE layer before whose experts the clean forward may end; None = it goes to the top
        keep_result: whether the record outlives the sweep, because nothing else writes its result down: the
            same job then ends at once, until the folder of the records is removed
    """

    title = "sweep"
    head = True
    branches = True
    clean_until: int | None = None
    keep_result = False

    @property
    def batches(self) -> int:
        """How many batches there are."""
        raise NotImplementedError

    @property
    def identity(self) -> str:
        """What decides the results besides model and windows; empty = they cannot be taken up again."""
        return ""

    def clean(self, batch: int) -> CleanForward:
        """A forward of a batch that has not run yet."""
        raise NotImplementedError

    def is_wanted(self, batch: int) -> bool:  # noqa: ARG002
        """Whether anything is left to do for a batch."""
        return True

    def around(self, batch: int, part: Part) -> AbstractContextManager[None]:  # noqa: ARG002
        """What holds while the clean forward of a batch runs through some layers."""
        return nullcontext()

    def whole(self, batch: int) -> Iterable[Branch]:  # noqa: ARG002
        """Whole forwards of a batch beside the clean one."""
        return ()

    def born(self, batch: int, row: int, clean: CleanForward) -> Iterable[Branch]:  # noqa: ARG002
        """Branches of a batch that are born in a MoE layer, in the same order whenever they are asked for.

        Args:
            batch: number of the batch
            row: place of the layer among the L MoE layers
            clean: the clean forward, which has just run through this layer
        """
        return ()

    def most_born(self, batch: int, row: int) -> int | None:  # noqa: ARG002
        """How many branches of whole windows `born` bears at most; None = not known before."""
        return None if self.branches else 0

    def arrived(self, batch: int, clean: CleanForward, logits: Tensor | None) -> None:
        """The clean forward of a batch has run through the last layer, before any branch of it does.

        Args:
            batch: number of the batch
            clean: the clean forward
            logits: [B, W, V]; None without head
        """

    def state(self) -> dict[str, Array]:
        """What the job has so far, by name: what is finished, and what the branches on their way add to."""
        return {}

    def restore(self, state: dict[str, Array]) -> None:
        """Take up what `state` gave in an interrupted run."""
