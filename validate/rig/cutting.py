"""Check 6: the restricted model, on which plans are measured, is the cut one and the reloaded one."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from criteria.text.windows import Windows
from experts.ablation import restricted
from experts.anatomy import Anatomy, MoELayer
from experts.plan import Plan
from experts.surgery import cut_layer
from validate.rig.check import Check

BlockCall = tuple[Any, Any, Tensor]  # arguments, keyword arguments, output


@torch.no_grad()
def check_restricted_is_cut(anatomy: Anatomy, first: Windows, plan: Plan) -> Check:
    """Check 6: every restricted block gives, bit by bit, what a copy of it gives that is cut.

    On the hidden states that really enter it; one copied block is in memory at a time.
    """
    different = []
    for layer, (args, kwargs, expected) in zip(
        anatomy.layers, _block_calls(anatomy, first, plan), strict=True
    ):
        copied = _copy_of(layer)
        cut_layer(copied, plan.kept[layer.index], anatomy.shape.num_experts)
        if not torch.equal(_first_tensor(copied.block(*args, **kwargs)), expected):
            different.append(layer.name)
    evidence = f"{len(different)} of {len(anatomy.layers)} blocks differ"
    if different:
        evidence += f", first {different[0]}"
    return Check("6 restricted = cut", not different, evidence)


@torch.no_grad()
def last_logits(anatomy: Anatomy, windows: Windows) -> Tensor:
    """Return the logits of the first window [1, W, V], to compare with a reloaded model's bit by bit."""
    tokens = windows.select(np.array([0])).tensor(anatomy.device)
    logits: Tensor = anatomy.model(input_ids=tokens, use_cache=False).logits
    return logits


def check_reloaded(expected: Tensor, reloaded: Tensor) -> Check:
    """Check 6, after the export: the written checkpoint gives the restricted model's logits bit by bit.

    Args:
        expected: logits of the restricted model [1, W, V]
        reloaded: logits of the checkpoint, loaded again [1, W, V]
    """
    name = "6 restricted = reloaded"
    if torch.equal(expected, reloaded):
        return Check(name, True, "logits bit-equal")
    gap = float("nan")
    if expected.shape == reloaded.shape:
        gap = float((expected.double() - reloaded.double()).abs().max())
    return Check(name, False, f"logits differ by up to {gap:g}")


def _block_calls(anatomy: Anatomy, first: Windows, plan: Plan) -> list[BlockCall]:
    """What enters and leaves every MoE block of the restricted model, layer by layer [L]."""
    calls: list[BlockCall] = []

    def record(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((args, kwargs, _first_tensor(output)))

    hooks = [layer.block.register_forward_hook(record, with_kwargs=True) for layer in anatomy.layers]
    try:
        with restricted(anatomy, plan):
            anatomy.model(input_ids=first.tensor(anatomy.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _first_tensor(output: Any) -> Tensor:
    tensor = output[0] if isinstance(output, tuple) else output
    assert isinstance(tensor, Tensor)
    return tensor


def _copy_of(layer: MoELayer) -> MoELayer:
    config: Any = layer.experts.config
    copies: dict[int, Any] = {id(config): config}  # shared, not copied: it names the experts implementation
    block = copy.deepcopy(layer.block, copies)
    tensors = tuple((copies[id(module)], key) for module, key in layer.router_tensors)
    return replace(
        layer,
        block=block,
        experts=copies[id(layer.experts)],
        router=copies[id(layer.router)],
        router_tensors=tensors,
    )
