"""A mixture of experts with integer weights, small enough to work out every statistic by hand (see
criteria/test_statistics.py).

H = 2, E = 3, k = 2, one layer. Tokens 0, 1, 2 are the vectors (1, 0), (0, 2), (3, 4). The router's rows are
(1, 0), (0, 1), (1, 1) and its logits are the gate weights. Experts: f_0(x) = 2x, f_1(x) = (x₂, x₁), f_2(x) =
−x.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.integrations.moe import use_experts_implementation

from criteria.observe import observe
from criteria.razor import FORMS
from criteria.statistics import Statistics
from criteria.text.windows import Windows
from experts.anatomy import dissect


@use_experts_implementation(has_gate=False)
class MicroExperts(nn.Module):
    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.num_experts = 3
        self.act_fn = nn.Identity()
        eye, swap = torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        self.up_proj = nn.Parameter(torch.stack([eye, eye, eye]))
        self.down_proj = nn.Parameter(torch.stack([2 * eye, swap, -eye]))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        raise AssertionError("the interface's own implementation is used")


class MicroRouter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.top_k = 2
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        weight, index = torch.topk(hidden @ self.weight.T, self.top_k, dim=-1)
        return weight, index


class MicroBlock(nn.Module):
    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.gate, self.experts = MicroRouter(), MicroExperts(config)

    def forward(self, hidden_states: Tensor) -> Tensor:
        flat = hidden_states.reshape(-1, 2)
        weight, index = self.gate(flat)
        routed: Tensor = self.experts(flat, index, weight)
        return routed.view_as(hidden_states)


class CopyNorm(nn.Module):
    """A norm that changes nothing, so that the numbers stay integers; its output is a new tensor like any
    norm's.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * 1


class MicroLayer(nn.Module):
    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.norm, self.mlp = CopyNorm(), MicroBlock(config)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = hidden + self.mlp(self.norm(hidden))
        return out


class MicroModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = PreTrainedConfig()
        self.config._experts_implementation = "batched_mm"
        self.embed = nn.Embedding.from_pretrained(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]))
        self.layers = nn.ModuleList([MicroLayer(self.config)])
        self.double()

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        hidden: Tensor = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def micro_statistics() -> Statistics:
    """Two windows: token 0 alone in domain x; tokens 1 and 2 in domain y; one padding token (id 2) that must
    not count.

    Worked out by hand (the weights are above):
      token 0 = (1, 0): logits (1, 0, 1): experts 0, 2 with g = 1, 1;  f_0 = (2, 0), f_2 = (−1, 0)
      token 1 = (0, 2): logits (0, 2, 2): experts 1, 2 with g = 2, 2;  f_1 = (2, 0), f_2 = (0, −2)
      token 2 = (3, 4): logits (3, 4, 7): experts 2, 1 with g = 7, 4;  f_2 = (−3, −4), f_1 = (4, 3)
    """
    tokens = np.array([[0, 2], [1, 2]])
    mask = np.array([[True, False], [True, True]])
    return observe(
        dissect(MicroModel()),
        Windows(tokens, mask, np.array([0, 1]), np.array([0, 1]), ("a", "b"), ("x", "y")),
        forms=FORMS,
    )
