"""What a layer of an OLMoE sees and leaves, by plain forwards and loops over tokens."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from experts.anatomy import Anatomy


def stream_after(anatomy: Anatomy, layer: int, tokens: Tensor) -> np.ndarray:
    """What a plain forward leaves after a decoder layer [B·W, H]."""
    seen: list[Tensor] = []
    hook = anatomy.model.base_model.layers[layer].register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        anatomy.model(input_ids=tokens, use_cache=False)
    hook.remove()
    stream = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    return stream.reshape(-1, stream.shape[-1]).numpy()


def features_by_hand(anatomy: Anatomy, layer: int, kept: tuple[int, ...], tokens: Tensor) -> np.ndarray:
    """Z of a restricted OLMoE, token by token and expert by expert [B·W, K·I]."""
    block: Any = anatomy.layers[layer].block
    entering: list[Tensor] = []
    hook = block.register_forward_pre_hook(lambda _, given: entering.append(given[0]))
    with torch.no_grad():
        anatomy.model(input_ids=tokens, use_cache=False)
    hook.remove()
    hidden = entering[0].reshape(-1, entering[0].shape[-1])
    logits = functional.linear(hidden, block.gate.weight.detach()[: len(kept)])
    chances = logits.softmax(-1, dtype=torch.float32)  # as OLMoE does in every precision
    gates, chosen = chances.topk(block.gate.top_k, dim=-1)
    inner = block.experts.down_proj.shape[2]
    found = np.zeros((len(hidden), len(kept), inner))
    for token, (places, weights) in enumerate(zip(chosen.tolist(), gates.tolist(), strict=True)):
        for place, weight in zip(places, weights, strict=True):
            up = functional.linear(hidden[token], block.experts.gate_up_proj.detach()[kept[place]])
            found[token, place] = weight * (functional.silu(up[:inner]) * up[inner:]).numpy()
    return found.reshape(len(hidden), -1)
