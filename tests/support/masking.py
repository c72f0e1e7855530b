"""Removal as a reference would do it, without any code of Excise: the router's logits of the removed experts
are −∞, so is their correction bias.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LAYER = re.compile(r"\.layers\.(\d+)\.")
BIASES = ("e_score_correction_bias", "expert_bias")


@contextmanager
def masked(model: nn.Module, kept: Mapping[int, Sequence[int]], experts: int) -> Iterator[None]:
    """Inside the block no token can choose another expert. Routers are known by their names and rows."""
    gone = {layer: [i for i in range(experts) if i not in ids] for layer, ids in kept.items()}
    rows: dict[int, list[int]] = {}
    before: list[tuple[Tensor, Tensor]] = []
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        layer = LAYER.search(name)
        if (
            layer is None
            or int(layer.group(1)) not in kept
            or experts not in tensor.shape
            or re.search("shared|vis", name)
        ):
            continue
        if name.endswith(BIASES):
            before.append((tensor.data, tensor.data.clone()))
            tensor.data[..., gone[int(layer.group(1))]] = -torch.inf
        elif tensor.ndim == 2 and re.search(r"\.(gate|router|wg)\b", name):
            rows[tensor.data_ptr()] = gone[int(layer.group(1))]
    assert len(rows) == len(kept)
    linear = nn.functional.linear

    def masking(data: Tensor, weight: Tensor, *bias: Any, **named: Any) -> Tensor:
        out = linear(data, weight, *bias, **named)
        if weight.data_ptr() in rows:
            out[..., rows[weight.data_ptr()]] = -torch.inf
        return out

    nn.functional.linear = masking
    try:
        yield
    finally:
        nn.functional.linear = linear
        for tensor, values in before:
            tensor.copy_(values)
