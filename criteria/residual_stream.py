"""The residual stream before a MoE block, and how far the experts turn it."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from experts.anatomy import Anatomy, MoELayer


def turn(stream: Tensor | None, routed: Tensor) -> Tensor:
    """Return 1 − cos(h, h + y) per token [T]: how far the routed output y turns the residual stream h.

    nan where h cannot be seen, or where experts work in a space of their own size, from which the block
    projects back later. Source: EASY-EP, https://arxiv.org/abs/2504.06792

    Args:
        stream: h, with T·H elements
        routed: y [T, H]
    """
    if stream is None or stream.numel() != routed.numel():
        return torch.full(routed.shape[:1], torch.nan, device=routed.device)
    wide = torch.promote_types(routed.dtype, torch.float32)
    before = stream.reshape(routed.shape).to(wide)
    return 1 - nn.functional.cosine_similarity(before, before + routed.to(wide), dim=-1)


@contextmanager
def residual_streams(anatomy: Anatomy) -> Iterator[Callable[[int], Tensor | None]]:
    """Inside the block, yield a function that returns the residual stream before a MoE block.

    The stream is what the norm in front of the block read. Candidates are the modules beside the block that
    have "norm" in their name; taken is the one that returned the very tensor which entered the block. Where
    none did, the block adds to a stream that cannot be seen from outside, and the function returns None.

    Yields:
        row -> the stream [B, W, H], once per forward.
    """
    streams = {row: _BlockInput() for row in range(len(anatomy.layers))}
    with ExitStack() as hooks:
        for row, layer in enumerate(anatomy.layers):
            for norm in _norms_beside(anatomy, layer):
                hooks.callback(norm.register_forward_hook(streams[row].see_norm).remove)
            entry = layer.block.register_forward_pre_hook(streams[row].see_block, with_kwargs=True)
            hooks.callback(entry.remove)
        yield lambda row: streams[row].take()


def _norms_beside(anatomy: Anatomy, layer: MoELayer) -> Iterator[nn.Module]:
    parent = anatomy.model.get_submodule(layer.name.rpartition(".")[0])
    for name, module in parent.named_children():
        if module is not layer.block and "norm" in name:
            yield module


class _BlockInput:
    """What enters one MoE block, and the stream it was made from."""

    def __init__(self) -> None:
        self._norm_input: Tensor | None = None
        self._norm_output: weakref.ref[Tensor] | None = None  # the model decides how long it lives
        self._stream: Tensor | None = None

    def see_norm(self, _: nn.Module, args: Any, output: Any) -> None:
        """A forward hook of a norm."""
        if isinstance(output, Tensor) and args and isinstance(args[0], Tensor):
            self._norm_input, self._norm_output = args[0], weakref.ref(output)

    def see_block(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """A hook before the block."""
        entering = args[0] if args else kwargs.get("hidden_states")
        normed = self._norm_output() if self._norm_output is not None else None
        self._stream = self._norm_input if normed is entering else None
        self._norm_input = self._norm_output = None

    def take(self) -> Tensor | None:
        """Return the stream and forget it."""
        stream, self._stream = self._stream, None
        return stream
