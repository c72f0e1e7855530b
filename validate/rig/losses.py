"""Checks 1 to 3: are the losses right, do interventions leave no trace, and is there anything to see?"""

from contextlib import suppress

import torch

from criteria.text.windows import Windows
from experts.ablation import ablated, marked, restricted
from experts.anatomy import Anatomy
from experts.effects.outcome import token_losses
from experts.errors import ExciseError
from experts.modes import Mode
from experts.plan import Plan
from validate.loss import window_losses
from validate.rig.check import Check


@torch.no_grad()
def check_own_loss(anatomy: Anatomy, first: Windows) -> Check:
    """Check 1: |own mean − the model's own loss| ≤ 1e-4 nats.

    1e-2 in half precision, whose loss the model itself rounds.
    """
    tokens = first.tensor(anatomy.device)
    # The language-model loss without the router's auxiliary loss, which some configurations switch on.
    output = anatomy.model(input_ids=tokens, labels=tokens, use_cache=False, output_router_logits=False)
    theirs = float(output.loss)
    ours = float(window_losses(anatomy.model, first)[0])
    tolerance = 1e-4 if anatomy.model.dtype in (torch.float32, torch.float64) else 1e-2
    evidence = f"own {ours:.6f}, model's {theirs:.6f}, tolerance {tolerance:g}"
    return Check("1 own loss = model's loss", abs(ours - theirs) <= tolerance, evidence)


def check_lifted(anatomy: Anatomy, first: Windows, plan: Plan) -> Check:
    """Check 2: after a restriction, and an ablation in every mode, the loss is what it was, bit by bit."""
    before = window_losses(anatomy.model, first)[0]
    with restricted(anatomy, plan):
        inside = window_losses(anatomy.model, first)[0]
    for mode in Mode:
        _ablate_once(anatomy, first, mode)
    after = window_losses(anatomy.model, first)[0]
    evidence = f"before {before:.17g}, restricted {inside:.17g}, after {after:.17g}"
    return Check("2 lifted intervention = baseline", bool(before == after), evidence)


def _ablate_once(anatomy: Anatomy, first: Windows, mode: Mode) -> None:
    means = torch.zeros(len(anatomy.layers), anatomy.shape.num_experts, 1, device=anatomy.device)
    removed = {0: marked(anatomy, 0)}
    # Not every router can do without one expert.
    with suppress(ExciseError), ablated(anatomy, removed, mode, means):
        window_losses(anatomy.model, first)


@torch.no_grad()
def check_unique(anatomy: Anatomy, first: Windows) -> Check:
    """Check 3: more than half of the losses at different positions are different numbers."""
    tokens = first.tensor(anatomy.device)
    losses = token_losses(anatomy.model(input_ids=tokens, use_cache=False).logits, tokens).flatten()
    share = len(torch.unique(losses)) / len(losses)
    evidence = f"{share:.0%} of {len(losses)} losses are unique, more than 50 % needed"
    return Check("3 losses differ across positions", share > 0.5, evidence)
