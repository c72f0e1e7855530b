"""What a clean forward leaves behind for the interventions that begin inside it.

Layers below an intervention compute what they computed before, so a later run begins at its layer. In that
layer itself whatever runs before the experts (norms, attention) hands out what it returned before.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from experts.anatomy import Anatomy
from experts.decoder import Part, decoder_layers
from experts.seam import Forward, Handler, intercepted, replaced
from experts.sweep.prefix import Prefix
from experts.sweep.stage import State, Watch

Outputs = dict[str, list[Any]]  # name of a module in a decoder layer -> what it returned, call by call


@dataclass
class CleanForward:
    """A forward of B windows of W tokens over some decoder layers, with what later runs need of it.

    V is the vocabulary.

    Attributes:
        tokens: [B, W]
        inputs: of the model's forward
        losses: cross-entropy of the next token in nats, float64 [B, W − 1], once the last layer has run
        log_probabilities: log p [B, W, V], if asked for
        states: decoder layer with experts -> what enters it
        before: decoder layer with experts -> what the modules returned that run before them
        masks: decoder layer -> its attention mask
        index: MoE layer -> expert ids [B, W, k]
        weight: MoE layer -> gate weights [B, W, k]
        prefix: keys and values, if asked for
    """

    tokens: Tensor
    inputs: dict[str, Any]
    losses: Tensor
    log_probabilities: Tensor | None = None
    states: dict[int, State] = field(default_factory=dict)
    before: dict[int, Outputs] = field(default_factory=dict)
    masks: dict[int, Tensor | None] = field(default_factory=dict)
    index: dict[int, Tensor] = field(default_factory=dict)
    weight: dict[int, Tensor] = field(default_factory=dict)
    prefix: Prefix | None = None

    @classmethod
    def of(cls, tokens: Tensor, mask: Tensor | None = None, prefix: bool = False) -> "CleanForward":
        """A forward that has not run yet.

        Args:
            tokens: windows [B, W]
            mask: 0 on padding [B, W]; None = no padding
            prefix: keep keys and values too
        """
        inputs: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
        if mask is not None:
            inputs["attention_mask"] = mask
        cache = Prefix() if prefix else None
        if cache is not None:
            inputs |= {"past_key_values": cache, "use_cache": True}
        return cls(tokens, inputs, tokens.new_empty(0), prefix=cache)

    def forget(self) -> None:
        """Drop what only interventions in the layers that have run needed."""
        for known in (self.states, self.before, self.masks):
            known.clear()
        if self.prefix is not None:
            self.prefix.kept.clear()


@contextmanager
def recorded(anatomy: Anatomy, part: Part, clean: CleanForward) -> Iterator[Watch]:
    """Inside the block, what a forward of these layers does is recorded in `clean`.

    Yields:
        What the stage has to show every layer's arguments to.
    """
    layers = decoder_layers(anatomy)
    with ExitStack() as stack:
        for moe in part.anatomy.layers:
            outputs = clean.before.setdefault(moe.index, {})
            stack.enter_context(_recorded_before(layers[moe.index], moe.block, outputs))
        stack.enter_context(intercepted(part.anatomy, _routing_recorder(clean, part.rows.start)))
        yield _entry_recorder(clean, set(part.anatomy.shape.layers))


@contextmanager
def begun(layer: nn.Module, outputs: Outputs, position: Tensor | None, shape: torch.Size) -> Iterator[None]:
    """Inside the block a decoder layer begins at its experts: the modules before hand out what they returned.

    Args:
        layer: the decoder layer
        outputs: what they returned
        position: positions that the forward is made of [C]; None = all, in their order
        shape: of the windows that the outputs are of [B, W]
    """
    with ExitStack() as stack:
        for name, calls in outputs.items():
            module = layer.get_submodule(name)
            picked = [at_positions(output, position, shape) for output in calls]
            stack.enter_context(replaced(module, _replay(module.forward, picked)))
        yield


def at_positions(output: Any, position: Tensor | None, shape: torch.Size) -> Any:
    """The part of a module's output [B, W, …] at some positions; what has another shape stays as it is."""
    if isinstance(output, tuple):
        return tuple(at_positions(part, position, shape) for part in output)
    if position is None or not isinstance(output, Tensor):
        return output
    return output[:, position.to(output.device)] if output.shape[:2] == shape else output


def bytes_born(clean: CleanForward, layer: int, position: Tensor | None) -> int:
    """Bytes of what enters a branch that is born in a decoder layer.

    position: positions that it is made of [C]; None = all
    """
    size, (batch, length) = 0, clean.tokens.shape
    for value in clean.states[layer].values():
        is_part = position is not None and value.shape[:2] == (batch, length)
        size += value.nbytes * len(position) // length if is_part and position is not None else value.nbytes
    return size


def _entry_recorder(clean: CleanForward, with_experts: set[int]) -> Watch:
    """Records the mask of every layer, and what enters those with experts."""

    def watch(number: int, state: State, named: dict[str, Any]) -> None:
        clean.masks[number] = named.get("attention_mask")
        if number in with_experts:
            clean.states[number] = state

    return watch


def _routing_recorder(clean: CleanForward, first_row: int) -> Handler:
    """A handler that records expert ids and gate weights of every MoE layer."""

    def record(row: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        clean.index[first_row + row] = index.view(*clean.tokens.shape, -1)
        clean.weight[first_row + row] = weight.view(*clean.tokens.shape, -1)
        return run(hidden, index, weight)

    return record


@contextmanager
def _recorded_before(layer: nn.Module, block: nn.Module, outputs: Outputs) -> Iterator[None]:
    """Record what the modules of a decoder layer return before its block of experts is entered."""
    reached = False

    def reach(_: nn.Module, __: Any) -> None:
        nonlocal reached
        reached = True

    def recorder(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_: nn.Module, __: Any, output: Any) -> None:
            if not reached:
                outputs.setdefault(name, []).append(output)

        return record

    with ExitStack() as stack:
        stack.callback(block.register_forward_pre_hook(reach).remove)
        for name, child in layer.named_children():
            if all(module is not block for module in child.modules()):
                stack.callback(child.register_forward_hook(recorder(name)).remove)
        yield


def _replay(underneath: Callable[..., Any], outputs: list[Any]) -> Callable[..., Any]:
    """A forward that hands out these outputs, one a call, and computes again after the last."""
    left = list(reversed(outputs))

    def forward(*args: Any, **kwargs: Any) -> Any:
        return left.pop() if left else underneath(*args, **kwargs)

    return forward
