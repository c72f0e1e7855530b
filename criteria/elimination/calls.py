"""What a layer's block computes on some tokens of a text, layer by layer, as the whole model does it."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experts.anatomy import Anatomy
from experts.decoder import decoder_layers, part_of
from experts.errors import ExciseError
from experts.seam import Forward, intercepted
from experts.sweep.stage import Stage, State


@dataclass(frozen=True)
class Call:
    """A MoE block on T tokens.

    Attributes:
        entering: what enters the block [T, H]
        hidden: what enters its experts [T, H]
        index: expert ids [T, k]
        weight: gate weights [T, k]
        routed: what its experts add up to [T, H]
        stream: the residual stream after the layer [T, H]
    """

    entering: Tensor
    hidden: Tensor
    index: Tensor
    weight: Tensor
    routed: Tensor
    stream: Tensor


def calls(anatomy: Anatomy, tokens: Tensor, count: int, batch: int) -> Iterator[tuple[int, Call]]:
    """Yield every MoE layer's call while the layer's weights are in memory.

    Args:
        anatomy: the model
        tokens: windows [N, W]
        count: tokens that are kept, evenly spread; 0 = all
        batch: windows per forward

    Yields:
        Row of the layer, and its call.
    """
    reader = _Reader(anatomy, tokens, count, batch)
    row_of = {layer.index: row for row, layer in enumerate(anatomy.layers)}
    highest = anatomy.layers[-1].index
    for span in anatomy.weights.spans():
        if span.start > highest:
            break
        with anatomy.weights.loaded(span):
            for layer in span[: highest + 1 - span.start]:
                parts = [reader.read(layer, number) for number in range(len(reader.batches))]
                if layer in row_of:
                    yield row_of[layer], Call(*(torch.cat(values) for values in zip(*parts, strict=True)))


class _Reader:
    """Batches of windows on their way through the layers."""

    def __init__(self, anatomy: Anatomy, tokens: Tensor, count: int, batch: int) -> None:
        self.anatomy, self.stage = anatomy, Stage(anatomy)
        self.batches = torch.split(tokens, batch)
        total = tokens.numel()
        asked = torch.arange(min(count or total, total)) * total // min(count or total, total)
        marks = torch.zeros(total, dtype=torch.bool)
        marks[asked] = True
        self.chosen = torch.split(marks, batch * tokens.shape[1])
        self.states: dict[int, State | None] = {}

    def read(self, layer: int, number: int) -> tuple[Tensor, ...]:
        """Take a batch through a layer.

        Returns:
            The parts of its call; nothing for a layer without experts.
        """
        part, chosen = part_of(self.anatomy, range(layer, layer + 1)), self.chosen[number]
        seen: list[Tensor] = []
        entering: list[Tensor] = []

        def see(_: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
            routed = run(hidden, index, weight)
            seen.extend(values[chosen.to(values.device)] for values in (hidden, index, weight, routed))
            return routed

        with ExitStack() as stack:
            for moe in part.anatomy.layers:
                stack.callback(_record(moe.name, moe.block, entering))
            outputs = list[Tensor]()
            stack.callback(_outputs(decoder_layers(self.anatomy)[layer], outputs))
            stack.enter_context(intercepted(part.anatomy, see))
            inputs: dict[str, Any] = {"input_ids": self.batches[number], "use_cache": False}
            state = self.stage.run(part.span, self.states.get(number), inputs, head=False)
        self.states[number] = state if isinstance(state, dict) else None
        if not seen:
            return ()
        ends = [_rows(values, chosen) for values in (entering.pop(), outputs.pop())]
        return (ends[0], *seen, ends[1])


def _rows(values: Tensor, chosen: Tensor) -> Tensor:
    return values.reshape(len(chosen), -1)[chosen.to(values.device)]


def _record(name: str, block: nn.Module, entering: list[Tensor]) -> Any:
    """Record what enters a block. Returns what ends the recording."""

    def see(_: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if len(tensors) != 1:
            raise ExciseError(
                f"refit_residual: {name} takes {len(tensors)} tensors, so it cannot be routed again"
            )
        entering.append(tensors[0])

    return block.register_forward_pre_hook(see, with_kwargs=True).remove


def _outputs(layer: nn.Module, outputs: list[Tensor]) -> Any:
    """Record the stream after a decoder layer. Returns what ends the recording."""

    def see(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    return layer.register_forward_hook(see).remove
