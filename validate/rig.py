"""Checks of the instrument, before any data (METHODS 3). A failed check stops the run and says which.

1 own per-token loss averages to the model's own loss; 2 lifted interventions leave the loss bit-equal; 3 losses differ across
positions; 4 an effect is exactly 0 at earlier positions, and where the removed expert is not active; 5 a planted expert that computes
nothing has effect 0 everywhere; 6 restricted = cut, bit-equal, block by block here, and the reloaded checkpoint after the export.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from criteria.text.windows import Windows
from experts.ablation import ablated, marked, restricted
from experts.anatomy import Anatomy, MoELayer
from experts.effects.instrument import Instrument
from experts.effects.outcome import token_losses
from experts.errors import ExciseError
from experts.modes import Mode, Scope
from experts.plan import Plan
from experts.seam import Forward, intercepted
from experts.surgery import cut_layer
from validate.loss import window_losses

LOCAL = 32  # tokens on which single effects are checked


@dataclass(frozen=True)
class Check:
    """One check: what was tried, whether it held, and the numbers."""

    name: str
    passed: bool
    evidence: str


def check_rig(anatomy: Anatomy, windows: Windows, plan: Plan) -> list[Check]:
    """Runs the checks on the first window. Raises ExciseError that names the first failed one."""
    first = windows.select(np.array([0]))
    checks = [
        check_own_loss(anatomy, first),
        check_lifted(anatomy, first, plan),
        check_unique(anatomy, first),
        check_local(anatomy, first),
        check_planted(anatomy, first),
        check_restricted_is_cut(anatomy, first, plan),
    ]
    require(checks)
    return checks


def require(checks: list[Check]) -> None:
    """Stops at the first failed check."""
    for check in checks:
        if not check.passed:
            what = f"the instrument failed its check {check.name!r}: {check.evidence}"
            raise ExciseError(f"{what}; no result can be trusted, please report it")


@torch.no_grad()
def check_own_loss(anatomy: Anatomy, first: Windows) -> Check:
    """|own mean − the model's own loss| ≤ 1e-4 (1e-2 in half precision, whose loss the model itself rounds)."""
    tokens = _tokens(anatomy, first)
    # The language-model loss without the router's auxiliary loss, which some configurations switch on.
    theirs = float(
        anatomy.model(input_ids=tokens, labels=tokens, use_cache=False, output_router_logits=False).loss
    )
    ours = float(window_losses(anatomy.model, first)[0])
    tolerance = 1e-4 if anatomy.model.dtype in (torch.float32, torch.float64) else 1e-2
    evidence = f"own {ours:.6f}, model's {theirs:.6f}, tolerance {tolerance:g}"
    return Check("1 own loss = model's loss", abs(ours - theirs) <= tolerance, evidence)


def check_lifted(anatomy: Anatomy, first: Windows, plan: Plan) -> Check:
    """The loss after a restriction and after an ablation in every mode is the loss before, bit by bit."""
    before = window_losses(anatomy.model, first)[0]
    with restricted(anatomy, plan):
        inside = window_losses(anatomy.model, first)[0]
    means = torch.zeros(len(anatomy.layers), anatomy.shape.num_experts, 1, device=anatomy.device)
    for mode in Mode:
        with (
            suppress(ExciseError),
            ablated(anatomy, {0: marked(anatomy, 0)}, mode, means),
        ):  # not every router can do without one expert
            window_losses(anatomy.model, first)
    after = window_losses(anatomy.model, first)[0]
    evidence = f"before {before:.17g}, restricted {inside:.17g}, after {after:.17g}"
    return Check("2 lifted intervention = baseline", bool(before == after), evidence)


@torch.no_grad()
def check_unique(anatomy: Anatomy, first: Windows) -> Check:
    """More than half of the losses at different positions are different numbers."""
    tokens = _tokens(anatomy, first)
    losses = token_losses(anatomy.model(input_ids=tokens, use_cache=False).logits, tokens).flatten()
    share = len(torch.unique(losses)) / len(losses)
    return Check(
        "3 losses differ across positions",
        share > 0.5,
        f"{share:.0%} of {len(losses)} losses are unique, more than 50 % needed",
    )


@torch.no_grad()
def check_local(anatomy: Anatomy, first: Windows) -> Check:
    """Removal at one position (mode zero) of an active and of an inactive expert, in the lowest, middle and highest MoE layer.

    Exactly 0 before the position; exactly 0 everywhere for the inactive one; not 0 for at least one active one.
    """
    instrument, tokens = (
        Instrument(anatomy, probabilities=False, enters=False),
        _tokens(anatomy, first)[:, :LOCAL],
    )
    where, wrong, moved = (tokens.shape[1] - 1) // 2, 0, 0
    with intercepted(anatomy, _token_by_token):
        clean = instrument.clean_forward(tokens, Scope.SEQUENCE)
        cells = [(layer, active) for layer in _some_layers(anatomy) for active in (True, False)]
        for layer, active in cells:
            chosen = clean.index[layer][0, where]
            inactive = next((e for e in range(anatomy.shape.num_experts) if e not in chosen), None)
            expert = int(chosen[0]) if active else inactive
            if expert is not None:
                gone = torch.zeros(
                    tokens.shape[1], anatomy.shape.num_experts, dtype=torch.bool, device=tokens.device
                )
                gone[where, expert] = True
                delta = instrument.everywhere(clean, {layer: gone})[0][0]
                wrong += int((delta[:where] if active else delta).count_nonzero())
                moved += int(active and bool(delta[where:].any()))
    evidence = (
        f"{wrong} losses of {len(cells)} cells moved that must not, "
        f"{moved} of {len(cells) // 2} removals of an active expert did something"
    )
    return Check("4 effects only where they can be", wrong == 0 and moved > 0, evidence)


@torch.no_grad()
def check_planted(anatomy: Anatomy, first: Windows) -> Check:
    """The most used expert of a layer is overwritten with zeros: its removal (mode zero) then moves no loss; before, it moved some."""
    instrument, tokens = (
        Instrument(anatomy, probabilities=False, enters=False),
        _tokens(anatomy, first)[:, :LOCAL],
    )
    alive, dead = 0, 0
    for layer in _some_layers(anatomy):
        clean = instrument.clean_forward(tokens, Scope.SEQUENCE)
        expert = int(torch.bincount(clean.index[layer].flatten()).argmax())
        removed = {layer: marked(anatomy, expert)}
        alive += int(instrument.everywhere(clean, removed)[0].count_nonzero())
        with _emptied(anatomy.layers[layer], expert):
            dead += int(
                instrument.everywhere(instrument.clean_forward(tokens, Scope.SEQUENCE), removed)[
                    0
                ].count_nonzero()
            )
    evidence = f"{dead} losses moved by removing an empty expert, {alive} when it was not empty"
    return Check("5 a planted expert has no effect", dead == 0 and alive > 0, evidence)


@torch.no_grad()
def check_restricted_is_cut(anatomy: Anatomy, first: Windows, plan: Plan) -> Check:
    """Every block, on the hidden states that really enter it: restricted against a copy that is cut. One block in memory at a time."""
    entered = _block_inputs(anatomy, first, plan)
    different = []
    for layer, (args, kwargs, restricted_output) in zip(anatomy.layers, entered, strict=True):
        twin = _twin(layer)
        cut_layer(twin, plan.kept[layer.index], anatomy.shape.num_experts)
        if not torch.equal(_first(twin.block(*args, **kwargs)), restricted_output):
            different.append(layer.name)
    evidence = f"{len(different)} of {len(anatomy.layers)} blocks differ" + (
        f", first {different[0]}" if different else ""
    )
    return Check("6 restricted = cut", not different, evidence)


@torch.no_grad()
def last_logits(anatomy: Anatomy, windows: Windows) -> Tensor:
    """Logits of the first window, for comparing a restricted model with a reloaded one bit by bit."""
    logits: Tensor = anatomy.model(
        input_ids=_tokens(anatomy, windows.select(np.array([0]))), use_cache=False
    ).logits
    return logits


def check_reloaded(expected: Tensor, found: Tensor) -> Check:
    """The written checkpoint, loaded again, gives the restricted model's logits [1, W, V] bit by bit."""
    same = torch.equal(expected, found)
    gap = (
        float((expected.double() - found.double()).abs().max())
        if expected.shape == found.shape
        else float("nan")
    )
    return Check(
        "6 restricted = reloaded", same, "logits bit-equal" if same else f"logits differ by up to {gap:g}"
    )


def _some_layers(anatomy: Anatomy) -> list[int]:
    return sorted({0, len(anatomy.layers) // 2, len(anatomy.layers) - 1})


def _token_by_token(layer: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:  # noqa: ARG001
    """Grouped kernels round by the size of a group, so a token that is edited would move the last bit of others."""
    return torch.cat(
        [run(hidden[i : i + 1], index[i : i + 1], weight[i : i + 1]) for i in range(len(hidden))]
    )


@contextmanager
def _emptied(layer: MoELayer, expert: int) -> Iterator[None]:
    """All parameters of an expert are 0, so its output is; written back bit by bit."""
    before = [(parameter, parameter[expert].clone()) for parameter in layer.weights.values()]
    try:
        for parameter, _ in before:
            parameter[expert] = 0
        yield
    finally:
        for parameter, values in before:
            parameter[expert] = values


def _tokens(anatomy: Anatomy, windows: Windows) -> Tensor:
    return torch.from_numpy(windows.tokens).to(anatomy.device)


def _first(output: Any) -> Tensor:
    tensor = output[0] if isinstance(output, tuple) else output
    assert isinstance(tensor, Tensor)
    return tensor


def _block_inputs(anatomy: Anatomy, first: Windows, plan: Plan) -> list[tuple[Any, Any, Tensor]]:
    seen: list[tuple[Any, Any, Tensor]] = []

    def note(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen.append((args, kwargs, _first(output)))

    hooks = [layer.block.register_forward_hook(note, with_kwargs=True) for layer in anatomy.layers]
    try:
        with restricted(anatomy, plan):
            anatomy.model(input_ids=_tokens(anatomy, first), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _twin(layer: MoELayer) -> MoELayer:
    config: Any = layer.experts.config
    memo: dict[int, Any] = {id(config): config}  # shared, not copied: it names the experts implementation
    block = copy.deepcopy(layer.block, memo)
    tensors = tuple((memo[id(module)], key) for module, key in layer.router_tensors)
    return replace(
        layer,
        block=block,
        experts=memo[id(layer.experts)],
        router=memo[id(layer.router)],
        router_tensors=tensors,
    )
