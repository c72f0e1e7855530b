"""Position scope: hundreds of interventions as copies of tokens in one forward (docs/methods.md, 2).

Attention is causal, so an intervention at position t changes nothing before t, and only the prediction at t
is read. A copy is token t once more, at its own position, with a 4-D mask through which it sees the clean
positions < t and itself, not the other copies. It enters at the experts where it differs from the clean
token. The clean positions are not computed again: their keys and values are read from the first forward.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from experts.ablation import ablated
from experts.anatomy import Anatomy
from experts.effects.outcome import outcomes
from experts.effects.stream import CleanForward, decoder_layers, entered
from experts.errors import ExciseError
from experts.modes import Mode
from experts.seam import replaced


@torch.no_grad()
def packed(
    anatomy: Anatomy,
    clean: CleanForward,
    position: Tensor,
    removed: Mapping[int, Tensor],
    mode: Mode,
    means: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Measure C interventions at single positions of one window.

    Args:
        anatomy: the model
        clean: forward of the unmodified window, B = 1, with a prefix
        position: where each intervention happens [C], below W − 1
        removed: row among the MoE layers -> experts removed by each intervention, bool [C, E]
        mode: what removal means
        means: mean output of every expert [L, E, H], for Mode.MEAN

    Returns:
        Loss of the next token and KL in nats, float64 [C] each.
    """
    if clean.prefix is None or len(clean.tokens) != 1:
        raise ExciseError("packing needs a single window, looked at with its prefix")
    start = anatomy.layers[min(removed)].index
    tokens = clean.tokens[0]
    with ExitStack() as stack:
        stack.enter_context(entered(anatomy, clean, start, position))
        stack.enter_context(_masked(anatomy, clean, position, start))
        stack.enter_context(ablated(anatomy, removed, mode, means))
        logits = anatomy.model(
            input_ids=tokens[None, position],
            position_ids=position[None],
            past_key_values=clean.prefix,
            use_cache=True,
        ).logits[0]
    known = None if clean.log_probabilities is None else clean.log_probabilities[0]
    return outcomes(logits, tokens[position + 1], known, position)


@contextmanager
def _masked(anatomy: Anatomy, clean: CleanForward, position: Tensor, start: int) -> Iterator[None]:
    """Give every decoder layer behind `start` the copies' own mask.

    It is derived from the mask which that layer had: sliding windows stay. In layer `start` itself attention
    does not run again.
    """
    length, dtype = clean.tokens.shape[1], clean.streams[start].dtype
    masks: dict[int, Tensor] = {}  # by the identity of the clean mask, which many layers share
    with ExitStack() as stack:
        for index, layer in enumerate(decoder_layers(anatomy)):
            if index > start:
                clean_mask = clean.masks[index]
                if id(clean_mask) not in masks:
                    masks[id(clean_mask)] = copies_mask(clean_mask, position, length, dtype)
                stack.enter_context(replaced(layer, _with_mask(layer, masks[id(clean_mask)])))
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
    hidden = False if clean.dtype == torch.bool else torch.finfo(dtype).min
    copies = torch.arange(len(position), device=position.device)
    to_clean = clean[0, 0, position, :length].clone()  # [C, W]
    to_copies = torch.full((len(copies), len(copies)), hidden, dtype=clean.dtype, device=position.device)
    to_copies[copies, copies] = to_clean[copies, position]
    to_clean[copies, position] = hidden
    return torch.cat([to_clean, to_copies], dim=-1)[None, None]
