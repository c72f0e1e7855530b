"""The residual stream between decoder layers: recorded once, entered by later forwards where they change.

Layers below an intervention compute what they computed before. A later run therefore skips them: the first
decoder layer hands out the hidden state that is known to enter layer d, and the others up to d pass it on. In
layer d itself whatever runs before the experts (norms, attention) hands out what it returned before.
Embeddings, rotary positions, masks, residual sums and everything after stay the model's own.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from experts.anatomy import Anatomy
from experts.disk.tensors import list_of
from experts.effects.outcome import log_probabilities, token_losses
from experts.errors import ExciseError
from experts.seam import Forward, Handler, intercepted, replaced


class Prefix(Cache):
    """Keys and values of the unmodified windows.

    The first forward writes them; later ones read them, for tokens that come after. transformers' own caches
    crop sliding windows and grow with every call; this one keeps every position and never changes.

    Attributes:
        kept: decoder layer -> keys and values of the windows
        length: positions that are kept; 0 while the first forward runs
    """

    is_sliding: list[bool] = []  # noqa: RUF012 - an instance attribute of the base class, asked for by the masks
    is_compileable = False

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of the prefix and the new ones; in the first forward these become the prefix."""
        if not self.length:
            self.kept[layer_idx] = key_states, value_states
            return key_states, value_states
        keys, values = self.kept[layer_idx]
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - every layer holds every position
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:  # noqa: ARG002
        return self.length + query_length, 0


@dataclass
class CleanForward:
    """One plain forward of B windows of W tokens, with what later runs need of it. V is the vocabulary.

    Attributes:
        tokens: [B, W]
        losses: cross-entropy of the next token in nats, float64 [B, W − 1]
        log_probabilities: log p [B, W, V], if asked for
        streams: decoder layer with experts -> hidden state that enters it [B, W, H]
        before: decoder layer with experts -> name of a module that runs before them -> its outputs, call by
            call
        masks: decoder layer -> its attention mask
        index: expert ids of every MoE layer, L × [B, W, k]
        weight: gate weights of every MoE layer, L × [B, W, k]
        prefix: keys and values, if asked for
    """

    tokens: Tensor
    losses: Tensor
    log_probabilities: Tensor | None
    streams: dict[int, Tensor] = field(default_factory=dict)
    before: dict[int, dict[str, list[Any]]] = field(default_factory=dict)
    masks: dict[int, Tensor | None] = field(default_factory=dict)
    index: list[Tensor] = field(default_factory=list)
    weight: list[Tensor] = field(default_factory=list)
    prefix: Prefix | None = None


def decoder_layers(anatomy: Anatomy) -> nn.ModuleList:
    """The list of decoder layers that holds the MoE blocks."""
    name = list_of(anatomy.layers[0].name)
    layers = anatomy.model.get_submodule(name)
    if not isinstance(layers, nn.ModuleList):
        raise ExciseError(f"{name}: expected the list of decoder layers, found {type(layers).__name__}")
    return layers


@torch.no_grad()
def clean_forward(
    anatomy: Anatomy, tokens: Tensor, prefix: bool = False, probabilities: bool = True
) -> CleanForward:
    """Run the unmodified model and record what later runs need.

    Args:
        anatomy: the model
        tokens: windows [B, W]
        prefix: keep keys and values too
        probabilities: keep log p [B, W, V] too
    """
    clean = CleanForward(tokens, tokens.new_empty(0), None, prefix=Prefix() if prefix else None)
    cache: dict[str, Any] = {"use_cache": False}
    if clean.prefix is not None:
        cache = {"past_key_values": clean.prefix, "use_cache": True}
    layers = decoder_layers(anatomy)
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            stack.callback(_record_entry(clean, layer, index, index in anatomy.shape.layers))
        for moe in anatomy.layers:
            outputs = clean.before.setdefault(moe.index, {})
            stack.enter_context(_recorded(layers[moe.index], moe.block, outputs))
        stack.enter_context(intercepted(anatomy, _routing_recorder(clean)))
        logits = anatomy.model(input_ids=tokens, **cache).logits
    if clean.prefix is not None:
        clean.prefix.length = tokens.shape[1]
    clean.losses = token_losses(logits, tokens).double()
    clean.log_probabilities = log_probabilities(logits) if probabilities else None
    return clean


@contextmanager
def entered(
    anatomy: Anatomy, clean: CleanForward, start: int, position: Tensor | None = None
) -> Iterator[None]:
    """Inside the block one forward begins at the experts of a decoder layer.

    Args:
        anatomy: the model
        clean: what is known of everything before
        start: the decoder layer
        position: positions of the window that the forward is made of [C]; None = all, in their order
    """
    layers = decoder_layers(anatomy)
    hidden = _at_positions(clean.streams[start], clean, position)
    with ExitStack() as stack:
        for index, layer in enumerate(layers[:start]):
            stack.enter_context(replaced(layer, _hand_out(hidden) if index == 0 else _pass_on))
        for name, outputs in clean.before[start].items():
            module = layers[start].get_submodule(name)
            picked = [_at_positions(output, clean, position) for output in outputs]
            stack.enter_context(replaced(module, _replay(module.forward, picked)))
        yield


def _record_entry(clean: CleanForward, layer: nn.Module, index: int, has_experts: bool) -> Callable[[], None]:
    """Record a decoder layer's mask, and its hidden states where it has experts. Returns what ends this."""

    def record(_: nn.Module, args: Any, kwargs: Any) -> None:
        clean.masks[index] = kwargs.get("attention_mask")
        if has_experts:
            clean.streams[index] = args[0] if args else kwargs["hidden_states"]

    return layer.register_forward_pre_hook(record, with_kwargs=True).remove


def _routing_recorder(clean: CleanForward) -> Handler:
    """A handler that records expert ids and gate weights of every MoE layer."""

    def record(row: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        assert row == len(clean.index), "MoE layers run in order"
        clean.index.append(index.view(*clean.tokens.shape, -1))
        clean.weight.append(weight.view(*clean.tokens.shape, -1))
        return run(hidden, index, weight)

    return record


@contextmanager
def _recorded(layer: nn.Module, block: nn.Module, outputs: dict[str, list[Any]]) -> Iterator[None]:
    """Record what the modules of a decoder layer return before its experts' block is entered."""
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


def _at_positions(output: Any, clean: CleanForward, position: Tensor | None) -> Any:
    """The part of a module's output [B, W, …] at some positions; what has another shape stays as it is."""
    if isinstance(output, tuple):
        return tuple(_at_positions(part, clean, position) for part in output)
    if position is None or not isinstance(output, Tensor):
        return output
    return output[:, position] if output.shape[:2] == clean.tokens.shape else output


def _hand_out(hidden: Tensor) -> Callable[..., Tensor]:
    """A decoder layer that hands out a known hidden state."""

    def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:  # noqa: ARG001 - a name of the interface
        return hidden

    return forward


def _pass_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    """A decoder layer that does nothing."""
    return hidden_states


def _replay(underneath: Callable[..., Any], outputs: list[Any]) -> Callable[..., Any]:
    """A forward that hands out these outputs, one a call, and computes again after the last."""
    left = list(reversed(outputs))

    def forward(*args: Any, **kwargs: Any) -> Any:
        return left.pop() if left else underneath(*args, **kwargs)

    return forward
