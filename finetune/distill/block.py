"""A layer's routed block with the kept experts alone, its matrices and router rows ready to be trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor, nn

from experts.anatomy import MoELayer, expert_rows
from experts.disk.configuration import COUNT_KEYS
from experts.errors import ExciseError
from experts.routing import shrink_router
from experts.seam import ROUNDING, replaced
from experts.undo import Undo

ROUTER = "router"  # key of the router's rows beside the names of the experts' parameters


class _Routed(Exception):  # noqa: N818 - not an error: the way out of a block whose rest need not run
    """Carries the routed output of a block [T, H]."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


class Block:
    """The routed block of a layer as the pruned model computes it, by the module's own forward.

    Attributes:
        layer: the MoE layer
        leaves: what is trained: matrices of the K kept experts by name [K, …], and ROUTER, their rows [K, H]
    """

    def __init__(self, layer: MoELayer, leaves: Mapping[str, nn.Parameter]) -> None:
        self.layer, self.leaves = layer, leaves

    def __call__(self, entering: Tensor) -> Tensor:
        """What the experts of the block add up to [T, H]. entering: what enters the block [T, H]."""
        underneath = self.layer.experts.forward

        # The names are those of the interface.
        def stop(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> NoReturn:
            raise _Routed(underneath(hidden_states, top_k_index, top_k_weights))

        with replaced(self.layer.experts, stop):
            try:
                self.layer.block.forward(entering[None])
            except _Routed as routed:
                return routed.output
        name = self.layer.name
        raise ExciseError(
            f"{name}: cannot be trained: the block did not call its experts; refit without local"
        )


@contextmanager
def trainable_block(
    layer: MoELayer, kept: tuple[int, ...], num_experts: int, refitted: Mapping[str, Tensor]
) -> Iterator[Block]:
    """Inside the block the layer has the kept experts alone, and weights that can be trained.

    Args:
        layer: the MoE layer, its weights in memory
        kept: sorted ids of K experts
        num_experts: E
        refitted: parameters of the experts that are others than the layer's own, by name [K, …]
    """
    with Undo() as undo:
        leaves: dict[str, nn.Parameter] = {}
        for name, parameter in layer.weights.items():
            owner, _, key = name.rpartition(".")
            rows = expert_rows(parameter, kept, num_experts)
            own = nn.Parameter(refitted.get(name, rows).to(rows).clone(), requires_grad=rows.ndim > 2)
            if own.requires_grad:
                leaves[name] = own
            undo.replace(layer.experts.get_submodule(owner)._parameters, key, own)
        for key in COUNT_KEYS:
            if key in vars(layer.experts):
                undo.replace(vars(layer.experts), key, len(kept))
        shrink_router(layer, kept, num_experts, undo)
        leaves[ROUTER] = layer.router.get_parameter("weight")
        leaves[ROUTER].requires_grad_()
        yield Block(layer, leaves)


@torch.no_grad()
def check_block(
    layer: MoELayer, kept: tuple[int, ...], num_experts: int, entering: Tensor, routed: Tensor
) -> None:
    """Refuse a block that computes something else on its own than inside the pruned model.

    Most tokens are compared: where two experts are as good as level, rounding may choose either.

    Args:
        layer: the MoE layer, its weights in memory
        kept: sorted ids of K experts
        num_experts: E
        entering: what enters the block in the pruned model [T, H]
        routed: what its experts add up to there [T, H]

    Raises:
        ExciseError: it does.
    """
    with trainable_block(layer, kept, num_experts, {}) as block:
        gap = torch.linalg.vector_norm(block(entering).double() - routed.double(), dim=1)
    size = torch.linalg.vector_norm(routed.double(), dim=1)
    if gap.median() > ROUNDING[routed.dtype] * size.median():
        raise ExciseError(
            f"{layer.name}: cannot be trained: the block computes something else on its own than in the "
            "model; refit without local"
        )


def matrices(values: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Copies of what is trained, as it is now."""
    return {name: value.detach().clone() for name, value in values.items()}


def rows_of(layer: MoELayer, name: str) -> Tensor:
    """The parameter of a layer that a name of `Block.leaves` means, with a row for every expert it has."""
    if name == ROUTER:
        return layer.router.get_parameter("weight")
    return layer.experts.get_parameter(name)


def still(gradient: Tensor, places: list[int]) -> Tensor:
    """A gradient [K, …] that leaves some experts where they are. places: among the K."""
    gradient[torch.tensor(places, dtype=torch.int64, device=gradient.device)] = 0
    return gradient
