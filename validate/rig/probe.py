"""A probe of the instrument: a window, what is done with it, and the checks that follow from it."""

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.decoder import Part
from experts.keys import key_of
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

    Attributes:
        results: names of the attributes that hold what was found so far: numbers and texts, in lists and
            dictionaries by text
    """

    results: tuple[str, ...]

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


def run_probes(anatomy: Anatomy, probes: Sequence[Probe], identity: str = "") -> list[Check]:
    """Run probes in one sweep.

    Args:
        anatomy: the unpruned model
        probes: a batch each
        identity: what decides the results besides model, windows and probes; empty = an interrupted sweep
            begins anew

    Returns:
        Their checks, in order of their names.
    """
    sweep(anatomy, _Probes(probes, identity))
    checks = [check for probe in probes for check in probe.checks()]
    return sorted(checks, key=lambda check: check.name)


class _Probes(Job):
    """Every probe is a batch."""

    title = "check the instrument"
    keep_result = True

    def __init__(self, probes: Sequence[Probe], identity: str) -> None:
        self.probes, self._identity = probes, identity

    @property
    def identity(self) -> str:
        kinds = [type(probe).__name__ for probe in self.probes]
        return key_of(self.title, kinds, self._identity) if self._identity else ""

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

    def state(self) -> dict[str, Array]:
        found = [{name: getattr(probe, name) for name in probe.results} for probe in self.probes]
        text = bytearray(json.dumps(found).encode())
        return {"found": torch.frombuffer(text, dtype=torch.uint8).numpy()}

    def restore(self, state: dict[str, Array]) -> None:
        found = json.loads(state["found"].tobytes())
        for probe, results in zip(self.probes, found, strict=True):
            for name, value in results.items():
                setattr(probe, name, value)
