"""A model writes: tokens drawn one by one from its own probabilities, by random numbers that are given.

The loop is transformers' `generate`, which knows the cache of every architecture. The draw happens in a
logits processor, so that the tokens of a window depend on the window's own random numbers alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from experts.arrays import Array, Ids
from experts.errors import ExciseError, let_through, one_line

Tell = Callable[[int], object]
Plain: Any = GenerationConfig  # its own types are not given


class Draw(LogitsProcessor):
    """Leaves one token a row: the first at which the cumulated probability exceeds the row's random number.

    In float64 on the CPU: the order in which a GPU cumulates is not fixed.

    Attributes:
        numbers: random numbers in [0, 1), one for every row and token [B, W]
        temperature: logits are divided by it
        step: tokens drawn so far
        tell: called with the number of tokens of every draw
    """

    def __init__(self, numbers: Tensor, temperature: float, tell: Tell) -> None:
        self.numbers, self.temperature, self.tell = numbers, temperature, tell
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002 - of the interface
        chosen = drawn(scores, self.numbers[:, self.step], self.temperature)
        self.step += 1
        self.tell(len(chosen))
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(1, chosen[:, None].to(scores.device), 0.0)


def drawn(logits: Tensor, numbers: Tensor, temperature: float) -> Tensor:
    """A token a row, by inversion of the cumulated softmax.

    Args:
        logits: [B, V]
        numbers: in [0, 1) [B], float64
        temperature: logits are divided by it

    Returns:
        Token ids [B], on the CPU.
    """
    probabilities = torch.softmax(logits.detach().cpu().double() / temperature, dim=-1)
    cumulated = probabilities.cumsum(dim=-1)
    sought = (numbers * cumulated[:, -1])[:, None]
    chosen = torch.searchsorted(cumulated, sought, right=True)[:, 0]
    return chosen.clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def continued(
    network: PreTrainedModel,
    first: Ids,
    numbers: Array,
    temperature: float,
    tell: Tell,
) -> Ids:
    """Let a model continue windows; the end token does not end one, another text follows it.

    Args:
        network: the model, on one device
        first: the windows' first tokens [B, P]
        numbers: random numbers in [0, 1) for the others [B, W − P]
        temperature: logits are divided by it
        tell: called with the number of tokens of every step

    Returns:
        Token ids [B, W].

    Raises:
        ExciseError: the model's generation loop cannot be run.
    """
    steps = numbers.shape[1]
    prompt = torch.from_numpy(first).to(network.device)
    draw = Draw(torch.from_numpy(numbers), temperature, tell)
    generate: Any = network.generate
    with _plain_generation(network):
        try:
            ids = generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=Plain(do_sample=False, max_new_tokens=steps, use_cache=True),
                logits_processor=LogitsProcessorList([draw]),
            )
        except Exception as error:  # a library's loop around a model's own code
            let_through(error)
            raise ExciseError(
                f"sampled: this model's generation loop cannot be run ({type(error).__name__}: "
                f"{one_line(error)}); take text (text, jsonl, dataset, stdlib) instead"
            ) from error
    written: Ids = ids.cpu().numpy().astype(np.int64)
    if written.shape[1] != first.shape[1] + steps:
        raise ExciseError(
            f"sampled: this model's generation loop wrote {written.shape[1] - first.shape[1]} tokens "
            f"of {steps}; take text (text, jsonl, dataset, stdlib) instead"
        )
    return written


@contextmanager
def _plain_generation(network: PreTrainedModel) -> Iterator[None]:
    """Nothing that a checkpoint says of generation counts: no top-k, no penalty, no end token."""
    before = network.generation_config
    network.generation_config = Plain()
    try:
        yield
    finally:
        network.generation_config = before
