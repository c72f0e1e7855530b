"""Single removals on a model in memory, by branches of a clean forward and by plain whole forwards."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from experts.ablation import ablated
from experts.decoder import Part
from experts.effects.instrument import Instrument
from experts.effects.outcome import log_probabilities, token_losses
from experts.effects.removal import Removal, RemovalBranch, only_at, window_effects
from experts.modes import Scope
from experts.sweep.branch import Branch
from experts.sweep.record import CleanForward
from experts.sweep.runner import Runner


@torch.no_grad()
def clean_forward(instrument: Instrument, tokens: Tensor, scope: Scope) -> CleanForward:
    """A clean forward of windows [B, W] that branches can be born from."""
    runner = Runner(instrument.anatomy)
    clean = CleanForward.of(tokens, prefix=scope is Scope.POSITION and instrument.packs)
    logits = runner.clean(runner.whole, clean, None)
    assert isinstance(logits, Tensor)
    clean.losses = token_losses(logits, tokens).double()
    if instrument.probabilities:
        clean.log_probabilities = log_probabilities(logits)
    return clean


def everywhere(
    instrument: Instrument, clean: CleanForward, removed: Mapping[int, Tensor], since: int | None = None
) -> tuple[Tensor, Tensor]:
    """ΔCE and KL [B, W − 1] of a removal at every position, or token by token."""
    return _measured(instrument, clean, min(removed) if since is None else since, removed, None)


def at_positions(
    instrument: Instrument, clean: CleanForward, position: Tensor, removed: Mapping[int, Tensor]
) -> tuple[Tensor, Tensor]:
    """ΔCE and KL [C] of removals at single positions of a window."""
    return _measured(instrument, clean, min(removed), removed, position)


@torch.no_grad()
def replay_position(
    instrument: Instrument, clean: CleanForward, position: int, removed: Mapping[int, Tensor]
) -> tuple[Tensor, Tensor]:
    """Loss and KL at one token, by a whole forward of the window that knows nothing of branches."""
    marks = {row: only_at(clean.tokens, position, of_row) for row, of_row in removed.items()}
    with ablated(instrument.anatomy, marks, instrument.mode, instrument.means):
        logits = instrument.anatomy.model(input_ids=clean.tokens, use_cache=False).logits
    delta, divergence = window_effects(clean, logits)
    return (delta + clean.losses)[0, position], divergence[0, position]


@torch.no_grad()
def _measured(
    instrument: Instrument,
    clean: CleanForward,
    row: int,
    removed: Mapping[int, Tensor],
    position: Tensor | None,
) -> tuple[Tensor, Tensor]:
    runner, results = Runner(instrument.anatomy), []

    def take(delta: Tensor, divergence: Tensor) -> None:
        results.append((delta, divergence))

    for branch in instrument.branches(Removal(row, removed, take, position), clean):
        logits = runner.branch(runner.whole, branch, clean, None)
        assert isinstance(logits, Tensor)
        branch.arrived(clean, logits)
    (result,) = results
    return result


def packing_off_by(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    """Removals at single positions are measured wrong by so many nats where they share a forward."""
    arrived = RemovalBranch.arrived

    def wrong(self: RemovalBranch, clean: CleanForward, logits: Tensor) -> None:
        if self.position is None:
            arrived(self, clean, logits)
            return

        def take(delta: Tensor, divergence: Tensor) -> None:
            self.take(delta + error, divergence)

        arrived(replace(self, take=take), clean, logits)

    monkeypatch.setattr(RemovalBranch, "arrived", wrong)


def branches_fail(monkeypatch: pytest.MonkeyPatch, error: Exception, *, packed: bool) -> None:
    """Branches that begin at the experts of a layer cannot run; packed: those of single positions alone."""
    run = Runner.branch

    def failing(self: Runner, part: Part, branch: Branch, *rest: Any) -> Any:
        fast = branch.row is not None and branch.begins_at_experts
        if branch.position is not None or (fast and not packed):
            raise error
        return run(self, part, branch, *rest)

    monkeypatch.setattr(Runner, "branch", failing)
