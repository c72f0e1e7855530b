"""Position scope: hundreds of interventions as extra rows of one forward (METHODS 2).

Attention is causal, so an intervention at position t changes nothing before t, and only the prediction at t is read. A row is token t once
more, at its own position, with a 4-D mask through which it sees the clean positions < t and itself, not the other rows. It enters at the
experts where it differs from the clean token. The clean positions are not computed again: their keys and values are read from the
first forward.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from experts.ablation import ablated
from experts.anatomy import Anatomy
from experts.effects.outcome import row_outcomes
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
    """Loss of the next token and KL [R], float64, of R interventions on one window (`clean` with B = 1 and a prefix).

    position: where each row stands [R], below W − 1; removed: layer position -> experts removed in each row, bool [R, E].
    """
    if clean.prefix is None or len(clean.tokens) != 1:
        raise ExciseError("packing needs a single window, looked at with its prefix")
    at = anatomy.layers[min(removed)].index
    tokens = clean.tokens[0]
    with ExitStack() as stack:
        stack.enter_context(entered(anatomy, clean, at, position))
        stack.enter_context(_masked(anatomy, clean, position, at))
        stack.enter_context(ablated(anatomy, removed, mode, means))
        logits = anatomy.model(
            input_ids=tokens[None, position],
            position_ids=position[None],
            past_key_values=clean.prefix,
            use_cache=True,
        ).logits[0]
    known = None if clean.log_probabilities is None else clean.log_probabilities[0]
    return row_outcomes(logits, tokens[position + 1], known, position)


@contextmanager
def _masked(anatomy: Anatomy, clean: CleanForward, position: Tensor, at: int) -> Iterator[None]:
    """Gives every decoder layer from `at` on the rows' own mask, derived from the mask which that layer had: sliding windows stay."""
    made: dict[int, Tensor] = {}  # layers with the same mask share the rows'

    with ExitStack() as stack:
        for number, layer in enumerate(decoder_layers(anatomy)):
            if number > at:  # in the layer itself attention does not run again
                before = clean.masks[number]
                if id(before) not in made:
                    made[id(before)] = row_mask(
                        before, position, clean.tokens.shape[1], clean.streams[at].dtype
                    )
                stack.enter_context(replaced(layer, _with_mask(layer, made[id(before)])))
        yield


def _with_mask(layer: nn.Module, mask: Tensor) -> Callable[..., Any]:
    underneath = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return underneath(*args, **{**kwargs, "attention_mask": mask})

    return forward


def row_mask(clean: Tensor | None, position: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """What each of R rows sees of the W clean positions and the R rows [1, 1, R, W + R]: what token t saw before itself, and itself.

    clean: the mask of the clean forward [1, 1, W, W], boolean (True = seen) or added to the scores; None = plain causal.
    """
    rows = torch.arange(len(position), device=position.device)
    if clean is None:
        clean = torch.ones(length, length, dtype=torch.bool, device=position.device).tril()[None, None]
    if not isinstance(clean, Tensor) or clean.ndim != 4:
        raise ExciseError(f"the attention mask of this model is no 4-D tensor ({type(clean).__name__})")
    of_row = clean[0, 0, position, :length]
    hidden = False if clean.dtype == torch.bool else torch.finfo(dtype).min
    own = torch.full((len(rows), len(rows)), hidden, dtype=clean.dtype, device=position.device)
    own[rows, rows] = of_row[rows, position]
    of_row = of_row.clone()
    of_row[rows, position] = hidden
    return torch.cat([of_row, own], dim=-1)[None, None]
