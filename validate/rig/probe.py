"""A probe of the instrument: a window, what is done with it, and the checks that follow from it."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from experts.anatomy import Anatomy
from experts.decoder import Part
from experts.sweep.branch import Branch
from experts.sweep.job import Job
from experts.sweep.record import CleanForward
from experts.sweep.sweep import sweep
from validate.rig.check import Check


class Probe:
    """One window [1, W], its clean forward, and branches of it.

    Args:
        anatomy: the unpruned model
        tokens: the window
    """

    def __init__(self, anatomy: Anatomy, tokens: Tensor) -> None:
        self.anatomy, self.tokens = anatomy, tokens

    def around(self, part: Part) -> AbstractContextManager[None]:  # noqa: ARG002
        """What holds while the clean forward runs."""
        return nullcontext()

    def arrived(self, clean: CleanForward, logits: Tensor) -> None:
        """The clean forward has run."""
        raise NotImplementedError

    def whole(self) -> Iterable[Branch]:
        """Whole forwards beside the clean one, in this order."""
        return ()

    def born(self, row: int, clean: CleanForward) -> Iterable[Branch]:  # noqa: ARG002
        """Branches that are born in a MoE layer."""
        return ()

    def checks(self) -> Sequence[Check]:
        """What was found."""
        raise NotImplementedError


def run_probes(anatomy: Anatomy, probes: Sequence[Probe]) -> list[Check]:
    """Run probes in one sweep, and return their checks in order of their names."""
    sweep(anatomy, _Probes(probes))
    checks = [check for probe in probes for check in probe.checks()]
    return sorted(checks, key=lambda check: check.name)


class _Probes(Job):
    """Every probe is a batch."""

    title = "check the instrument"

    def __init__(self, probes: Sequence[Probe]) -> None:
        self.probes = probes

    @property
    def batches(self) -> int:
        return len(self.probes)

    def clean(self, batch: int) -> CleanForward:
        return CleanForward.of(self.probes[batch].tokens)

    def around(self, batch: int, part: Part) -> AbstractContextManager[None]:
        return self.probes[batch].around(part)

    def whole(self, batch: int) -> Iterable[Branch]:
        return self.probes[batch].whole()

    def born(self, batch: int, row: int, clean: CleanForward) -> Iterable[Branch]:
        return self.probes[batch].born(row, clean)

    def arrived(self, batch: int, clean: CleanForward, logits: Tensor | None) -> None:
        assert logits is not None, "asked for"
        self.probes[batch].arrived(clean, logits)
