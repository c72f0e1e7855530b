"""Checks of the instrument, before any data (METHODS 3). A failed check stops the run and says which.

1 own per-token loss averages to the model's own loss; 2 a lifted restriction leaves the loss bit-equal; 3 losses differ across
positions; 6 restricted = cut, bit-equal, block by block here, and the reloaded checkpoint after the export.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from criteria.text import Windows
from experts.ablation import restricted
from experts.anatomy import Anatomy, MoELayer
from experts.errors import ExciseError
from experts.outcome import token_losses
from experts.plan import Plan
from experts.surgery import cut_layer
from validate.loss import window_losses


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
    theirs = float(anatomy.model(input_ids=tokens, labels=tokens, use_cache=False, output_router_logits=False).loss)
    ours = float(window_losses(anatomy.model, first)[0])
    tolerance = 1e-4 if anatomy.model.dtype in (torch.float32, torch.float64) else 1e-2
    evidence = f"own {ours:.6f}, model's {theirs:.6f}, tolerance {tolerance:g}"
    return Check("1 own loss = model's loss", abs(ours - theirs) <= tolerance, evidence)


def check_lifted(anatomy: Anatomy, first: Windows, plan: Plan) -> Check:
    """The loss after a restriction is lifted is the loss before it, bit by bit."""
    before = window_losses(anatomy.model, first)[0]
    with restricted(anatomy, plan):
        inside = window_losses(anatomy.model, first)[0]
    after = window_losses(anatomy.model, first)[0]
    return Check(
        "2 lifted restriction = baseline",
        bool(before == after),
        f"before {before:.17g}, restricted {inside:.17g}, after {after:.17g}",
    )


@torch.no_grad()
def check_unique(anatomy: Anatomy, first: Windows) -> Check:
    """More than half of the losses at different positions are different numbers."""
    tokens = _tokens(anatomy, first)
    losses = token_losses(anatomy.model(input_ids=tokens, use_cache=False).logits, tokens).flatten()
    share = len(torch.unique(losses)) / len(losses)
    return Check("3 losses differ across positions", share > 0.5, f"{share:.0%} of {len(losses)} losses are unique, more than 50 % needed")


@torch.no_grad()
def check_restricted_is_cut(anatomy: Anatomy, first: Windows, plan: Plan) -> Check:
    """Every block, on the hidden states that really enter it: restricted against a copy that is cut. One block in memory at a time."""
    entered = _block_inputs(anatomy, first, plan)
    different = []
    for layer, (args, kwargs, restricted_output) in zip(anatomy.layers, entered, strict=True):
        twin = _twin(layer)
        cut_layer(twin, plan.kept[layer.index])
        if not torch.equal(_first(twin.block(*args, **kwargs)), restricted_output):
            different.append(layer.name)
    evidence = f"{len(different)} of {len(anatomy.layers)} blocks differ" + (f", first {different[0]}" if different else "")
    return Check("6 restricted = cut", not different, evidence)


@torch.no_grad()
def last_logits(anatomy: Anatomy, windows: Windows) -> Tensor:
    """Logits of the first window, for comparing a restricted model with a reloaded one bit by bit."""
    logits: Tensor = anatomy.model(input_ids=_tokens(anatomy, windows.select(np.array([0]))), use_cache=False).logits
    return logits


def check_reloaded(expected: Tensor, found: Tensor) -> Check:
    """The written checkpoint, loaded again, gives the restricted model's logits [1, W, V] bit by bit."""
    same = torch.equal(expected, found)
    gap = float((expected.double() - found.double()).abs().max()) if expected.shape == found.shape else float("nan")
    return Check("6 restricted = reloaded", same, "logits bit-equal" if same else f"logits differ by up to {gap:g}")


def _tokens(anatomy: Anatomy, windows: Windows) -> Tensor:
    return torch.from_numpy(windows.tokens).to(next(anatomy.model.parameters()).device)


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
    return replace(layer, block=block, experts=memo[id(layer.experts)], router=memo[id(layer.router)], router_tensors=tensors)
