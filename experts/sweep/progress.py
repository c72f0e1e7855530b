"""The progress of a sweep in tokens × layers. What is known of the branches counts before they are born."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from experts.anatomy import Anatomy
from experts.decoder import Part, decoder_layers
from experts.sweep.branch import Branch
from experts.sweep.job import Job
from experts.sweep.record import CleanForward

State = tuple[int, int, dict[tuple[int, int], int]]


class Progress:
    """Is told what has run. This one shows nothing: where nothing waits, callers have bars of their own."""

    def clean(self, part: Part, batch: int, *, again: bool) -> None:
        """The clean forward of a batch ran through some layers. again: in a later pass once more."""

    def born(self, batch: int, branch: Branch) -> None:
        """A branch is about to begin."""

    def all_born(self, batch: int, row: int) -> None:
        """No more branches of a batch begin in a MoE layer."""

    def branch(self, part: Part, batch: int, branch: Branch, *, again: bool) -> None:
        """A branch ran through some layers, or from the layer it is born in to the last of them.

        again: as above
        """

    def state(self) -> State:
        """Work that is done, its total, and what of it is expected by batch and MoE layer."""
        return 0, 0, {}

    def restore(self, done: int, total: int, expected: dict[tuple[int, int], int]) -> None:
        """Go on where an interrupted run stopped."""


def bar_around_sweeps(anatomy: Anatomy, title: str, unit: str, total: int, initial: int = 0) -> "tqdm[Any]":
    """A bar over what sweeps work through; hidden where every sweep shows its own: only one is shown."""
    # Without `disable` tqdm's own variable counts, which -q sets.
    hidden: dict[str, Any] = {"disable": True} if anatomy.weights.streamed else {}
    return tqdm(total=total, initial=initial, desc=title, unit=unit, delay=2, **hidden)


class Bar(Progress):
    """A bar on stderr.

    Args:
        anatomy: the model
        job: what is done with it
        forwards: the clean forward of every batch

    Attributes:
        done: tokens × layers that have run
        total: that will have run in the end, as far as is known
    """

    def __init__(self, anatomy: Anatomy, job: Job, forwards: Sequence[CleanForward]) -> None:
        self.anatomy, self.job = anatomy, job
        self.tokens = [clean.tokens.numel() for clean in forwards]
        self.num_layers = len(decoder_layers(anatomy))
        self.done = 0
        self._expected = self._of_births()
        self.total = self._of_clean() + sum(self._expected.values())

    def __enter__(self) -> Self:
        # Layers take turns with reading: the mean of the whole run says more than that of its last seconds.
        self._bar: tqdm[Any] = tqdm(
            total=self.total,
            initial=self.done,
            desc=self.job.title,
            unit="token·layer",
            unit_scale=True,
            smoothing=0,
            delay=2,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def clean(self, part: Part, batch: int, *, again: bool) -> None:
        work = len(self._needed(part.span)) * self.tokens[batch]
        if again:
            self.total += work
        self._advance(work)

    def born(self, batch: int, branch: Branch) -> None:
        tokens = self._tokens(batch, branch)
        if branch.row is None:
            self.total += tokens * self.num_layers
            return
        work = tokens * self._layers_from(branch.row)
        known = min(work, self._expected.get((batch, branch.row), 0))
        self.total += work - known
        self._expected[batch, branch.row] = self._expected.get((batch, branch.row), 0) - known

    def all_born(self, batch: int, row: int) -> None:
        self.total -= self._expected.pop((batch, row), 0)

    def branch(self, part: Part, batch: int, branch: Branch, *, again: bool) -> None:
        first = 0 if branch.row is None else self.anatomy.layers[branch.row].index
        layers = range(max(first, part.span.start), part.span.stop)
        work = len(layers) * self._tokens(batch, branch)
        if again:
            self.total += work
        self._advance(work)

    def restore(self, done: int, total: int, expected: dict[tuple[int, int], int]) -> None:
        self.done, self.total, self._expected = done, total, expected

    def state(self) -> State:
        return self.done, self.total, dict(self._expected)

    def _advance(self, work: int) -> None:
        self.done += work
        self._bar.total = self.total
        self._bar.update(work)

    def _of_clean(self) -> int:
        tokens = [count for batch, count in enumerate(self.tokens) if self.job.is_wanted(batch)]
        return len(self._needed(range(self.num_layers))) * sum(tokens)

    def _of_births(self) -> dict[tuple[int, int], int]:
        """Work of the branches that are known before, by batch and MoE layer."""
        expected = {}
        for batch, tokens in enumerate(self.tokens):
            for row in range(len(self.anatomy.layers) if self.job.is_wanted(batch) else 0):
                most = self.job.most_born(batch, row) or 0
                expected[batch, row] = most * tokens * self._layers_from(row)
        return expected

    def _needed(self, span: range) -> range:
        """The layers of a span that the clean forward runs through."""
        until = self.job.clean_until
        stop = self.num_layers if until is None else self.anatomy.layers[until].index + 1
        return range(span.start, max(span.start, min(span.stop, stop)))

    def _layers_from(self, row: int) -> int:
        return self.num_layers - self.anatomy.layers[row].index

    def _tokens(self, batch: int, branch: Branch) -> int:
        return self.tokens[batch] if branch.position is None else len(branch.position)
