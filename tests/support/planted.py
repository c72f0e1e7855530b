"""A model whose busiest experts do nothing: a control on the validator's controls.

One layer, top-2 of eight experts, 12 tokens, attention switched off. Experts 0 and 1 (idle) take every token,
with the largest gate weight and by far the largest output, but write only where the head does not read: their
removal changes no logit. Experts 2 to 7 (useful) take two tokens each, with a small gate weight and a small
output: the logit of the token that usually comes next.
"""

import numpy as np
import torch
from torch import nn
from transformers import OlmoeConfig, OlmoeForCausalLM

from criteria.text.windows import Windows

TOKENS, HIDDEN, READ, NOWHERE = 12, 32, 12, 24  # the head reads dimensions 12 to 23
IDLE, USEFUL = (0, 1), tuple(range(2, 8))
FOLLOWS = np.random.default_rng(3).permutation(TOKENS)  # the token that usually comes next


@torch.no_grad()
def build() -> OlmoeForCausalLM:
    config = OlmoeConfig(
        vocab_size=TOKENS,
        hidden_size=HIDDEN,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=8,
        num_experts_per_tok=2,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = OlmoeForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.zero_()
    layer = model.model.layers[0]
    model.model.embed_tokens.weight[:, :TOKENS] = torch.eye(TOKENS)
    model.model.norm = nn.Identity()  # a norm would let what is written nowhere shrink everything else
    model.lm_head.weight[:, READ : READ + TOKENS] = torch.eye(TOKENS)
    scale = HIDDEN**0.5  # of the one entry of a normed token
    gate, up = layer.mlp.experts.gate_up_proj.chunk(2, dim=1)  # [E, I, H] each, views
    down = layer.mlp.experts.down_proj  # [E, H, I]
    for token in range(TOKENS):
        idle, useful, unit = token % 2, 2 + token // 2, token % 2
        layer.mlp.gate.weight[idle, token] = 3 / scale
        layer.mlp.gate.weight[useful, token] = 2 / scale
        gate[idle, token // 2, token] = up[idle, token // 2, token] = 1.0
        down[idle, NOWHERE, token // 2] = (
            1.0 + token
        )  # another size for every token: a large standard deviation too
        gate[useful, unit, token] = up[useful, unit, token] = 1.0
        down[useful, READ + FOLLOWS[token], unit] = 0.4 + 0.01 * token
    return model


def windows(count: int, length: int, seed: int) -> Windows:
    """Text in which three of four tokens are followed by their usual successor; every window is a
    document.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, TOKENS, (count, length))
    for place in range(1, length):
        usual = rng.random(count) < 0.75
        tokens[usual, place] = FOLLOWS[tokens[usual, place - 1]]
    rows = np.arange(count)
    return Windows(
        tokens, np.ones_like(tokens, bool), rows, np.zeros_like(rows), tuple(map(str, rows)), ("planted",)
    )
