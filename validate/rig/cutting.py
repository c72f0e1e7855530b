"""Check 6: the restricted model, on which plans are measured, is the cut one and the reloaded one."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from criteria.text.windows import Windows
from experts.ablation import restricted
from experts.anatomy import Anatomy, MoELayer
from experts.arrays import Array
from experts.decoder import Part
from experts.keys import key_of
from experts.plan import Plan
from experts.surgery import cut_layer
from experts.sweep.job import Job
from experts.sweep.record import CleanForward
from experts.sweep.sweep import sweep
from validate.rig.check import Check

BlockCall = tuple[Any, Any, Tensor]  # arguments, keyword arguments, output


@contextmanager
def recorded_blocks(anatomy: Anatomy) -> Iterator[list[BlockCall]]:
    """Inside the block, what enters and leaves every MoE block is recorded, in the order of the layers."""
    calls: list[BlockCall] = []

    def record(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((args, kwargs, _first_tensor(output)))

    hooks = [layer.block.register_forward_hook(record, with_kwargs=True) for layer in anatomy.layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def different_blocks(anatomy: Anatomy, plan: Plan, calls: list[BlockCall]) -> list[str]:
    """The blocks that do not give, bit by bit, what they gave while they were restricted when they are cut.

    On the hidden states that really entered them; one cut block is in memory at a time.

    Args:
        anatomy: the model, not restricted
        plan: what it was restricted to
        calls: what entered and left the restricted blocks
    """
    different = []
    for layer, (args, kwargs, expected) in zip(anatomy.layers, calls, strict=True):
        copied = _copy_of(layer)
        cut_layer(copied, plan.kept[layer.index], anatomy.shape.num_experts)
        if not torch.equal(_first_tensor(copied.block(*args, **kwargs)), expected):
            different.append(layer.name)
    return different


def last_logits(anatomy: Anatomy, windows: Windows, plan: Plan | None = None) -> Tensor:
    """Return the logits of the first window [1, W, V], to compare with a reloaded model's bit by bit.

    Args:
        anatomy: the model
        windows: their first one is read
        plan: what the model is restricted to; None = the model as it is
    """
    job = _FirstWindow(windows.select(np.array([0])).tensor(anatomy.device), plan)
    sweep(anatomy, job)
    assert job.logits is not None, "the sweep has ended"
    return job.logits


class _FirstWindow(Job):
    """The logits of one window."""

    title = "logits of a window"
    branches = False
    keep_result = True  # another whole reading of the files, where a checkpoint's proof is interrupted
    logits: Tensor | None = None

    def __init__(self, tokens: Tensor, plan: Plan | None) -> None:
        self.tokens, self.plan = tokens, plan

    @property
    def identity(self) -> str:
        return key_of(self.title, self.plan.digest if self.plan else "")

    @property
    def batches(self) -> int:
        return 1

    def clean(self, batch: int) -> CleanForward:  # noqa: ARG002 - the only one
        return CleanForward.of(self.tokens)

    def around(self, batch: int, part: Part) -> AbstractContextManager[None]:  # noqa: ARG002
        if self.plan is None:
            return nullcontext()
        return restricted(part.anatomy, self.plan.of_layers(part.anatomy.shape.layers))

    def arrived(self, batch: int, clean: CleanForward, logits: Tensor | None) -> None:  # noqa: ARG002
        self.logits = logits

    def state(self) -> dict[str, Array]:
        if self.logits is None:
            return {}
        bits = self.logits.cpu().contiguous().view(torch.uint8).numpy()  # numpy has no bfloat16
        return {str(self.logits.dtype).removeprefix("torch."): bits}

    def restore(self, state: dict[str, Array]) -> None:
        for dtype, bits in state.items():
            logits = torch.from_numpy(bits).view(getattr(torch, dtype))
            self.logits = logits.to(self.tokens.device)


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


def _first_tensor(output: Any) -> Tensor:
    tensor = output[0] if isinstance(output, tuple) else output
    assert isinstance(tensor, Tensor)
    return tensor


def _copy_of(layer: MoELayer) -> MoELayer:
    """The block once more: modules of its own, and the same tensors, of which the cut replaces some."""
    config: Any = layer.experts.config
    tensors = (*layer.block.parameters(), *layer.block.buffers())
    copies: dict[int, Any] = {id(shared): shared for shared in (config, *tensors)}
    block = copy.deepcopy(layer.block, copies)
    router_tensors = tuple((copies[id(module)], key) for module, key in layer.router_tensors)
    return replace(
        layer,
        block=block,
        experts=copies[id(layer.experts)],
        router=copies[id(layer.router)],
        router_tensors=router_tensors,
    )
