"""Attention masks of copies of single tokens: each sees the clean positions before its own, and itself."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from experts.errors import ExciseError
from experts.seam import replaced
from experts.sweep.record import CleanForward


@contextmanager
def masked(
    layers: nn.ModuleList, span: range, clean: CleanForward, position: Tensor, dtype: torch.dtype
) -> Iterator[None]:
    """Give decoder layers the copies' own mask.

    It is derived from the mask which that layer had: sliding windows stay.

    Args:
        layers: all decoder layers
        span: those that will be computed
        clean: the window's forward over these layers
        position: position of each copy [C]
        dtype: of the hidden states
    """
    length = clean.tokens.shape[1]
    masks: dict[int, Tensor] = {}  # by the identity of the clean mask, which many layers share
    with ExitStack() as stack:
        for number in span:
            clean_mask = clean.masks[number]
            if id(clean_mask) not in masks:
                masks[id(clean_mask)] = copies_mask(clean_mask, position, length, dtype)
            stack.enter_context(replaced(layers[number], _with_mask(layers[number], masks[id(clean_mask)])))
        yield


def _with_mask(layer: nn.Module, mask: Tensor) -> Callable[..., Any]:
    """The layer's forward with another attention mask."""
    underneath = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return underneath(*args, **{**kwargs, "attention_mask": mask})

    return forward


def copies_mask(clean: Tensor | None, position: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """What each of C copies sees: of the W clean positions what its token saw before itself, and itself.

    Args:
        clean: mask of the clean forward [1, 1, W, W], boolean (True = seen) or added to the scores; None =
            causal
        position: position of each copy [C]
        length: W
        dtype: of the hidden states; its smallest number hides what an added mask has to hide

    Returns:
        Mask of the clean positions and the copies [1, 1, C, W + C], of the dtype of `clean`.
    """
    if clean is None:
        clean = torch.ones(length, length, dtype=torch.bool, device=position.device).tril()[None, None]
    if not isinstance(clean, Tensor) or clean.ndim != 4:
        raise ExciseError(f"the attention mask of this model is no 4-D tensor ({type(clean).__name__})")
    position = position.to(clean.device)
    hidden = False if clean.dtype == torch.bool else torch.finfo(dtype).min
    copies = torch.arange(len(position), device=position.device)
    to_clean = clean[0, 0, position, :length].clone()  # [C, W]
    to_copies = torch.full((len(copies), len(copies)), hidden, dtype=clean.dtype, device=position.device)
    to_copies[copies, copies] = to_clean[copies, position]
    to_clean[copies, position] = hidden
    return torch.cat([to_clean, to_copies], dim=-1)[None, None]
