"""The residual stream between decoder layers: look at it once, and enter a later forward where something changes.

Layers below an intervention compute what they computed before. A later run therefore skips them: the first decoder layer hands out the
hidden state that is known to enter layer d, and the others up to d pass it on. In layer d itself whatever runs before the experts (norms,
attention) hands out what it gave before. Embeddings, rotary positions, masks, residual sums and everything after stay the model's own.
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
from experts.seam import Forward, intercepted, replaced


class Prefix(Cache):
    """Keys and values of the unmodified windows: written by the first forward, then read by rows that stand beside them.

    transformers' own caches crop sliding windows and grow with every call; this one keeps every position and never changes.
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
        """The rows' keys and values behind those of the prefix; while the prefix is being written, they are the prefix."""
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
    """One plain forward of windows, with what later runs need of it. B windows of W tokens; V = vocabulary.

    tokens: [B, W]; losses: of the next token [B, W − 1] float64; log_probabilities: [B, W, V]; streams: hidden state entering each
    decoder layer that holds experts {decoder layer: [B, W, H]}; before: what the layer's modules gave before its experts ran, {decoder
    layer: {module: its outputs, call by call}}; masks: what each decoder layer got as attention mask; index, weight: routing per MoE
    layer [B, W, k]; prefix: keys and values, if asked for.
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
    """The unmodified model on tokens [B, W]. prefix: also keep keys and values; probabilities: also keep log p [B, W, V]."""
    clean = CleanForward(tokens, tokens.new_empty(0), None, prefix=Prefix() if prefix else None)
    wanted = set(anatomy.shape.layers)

    def route(layer: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        assert layer == len(clean.index), "MoE layers run in order"
        clean.index.append(index.view(*tokens.shape, -1))
        clean.weight.append(weight.view(*tokens.shape, -1))
        return run(hidden, index, weight)

    with ExitStack() as stack:
        for number, layer in enumerate(decoder_layers(anatomy)):

            def note(_: nn.Module, args: Any, kwargs: Any, number: int = number) -> None:
                clean.masks[number] = kwargs.get("attention_mask")
                if number in wanted:
                    clean.streams[number] = args[0] if args else kwargs["hidden_states"]

            stack.callback(layer.register_forward_pre_hook(note, with_kwargs=True).remove)
        for moe in anatomy.layers:
            stack.enter_context(
                _recorded(
                    decoder_layers(anatomy)[moe.index], moe.block, clean.before.setdefault(moe.index, {})
                )
            )
        stack.enter_context(intercepted(anatomy, route))
        cache = (
            {"past_key_values": clean.prefix, "use_cache": True}
            if clean.prefix is not None
            else {"use_cache": False}
        )
        logits = anatomy.model(input_ids=tokens, **cache).logits
    if clean.prefix is not None:
        clean.prefix.length = tokens.shape[1]
    clean.losses = token_losses(logits, tokens).double()
    clean.log_probabilities = log_probabilities(logits) if probabilities else None
    return clean


@contextmanager
def entered(anatomy: Anatomy, clean: CleanForward, at: int, position: Tensor | None = None) -> Iterator[None]:
    """Inside the block one forward begins at the experts of decoder layer `at`: what comes before is known from `clean`.

    position: which tokens of the window the forward is made of [R]; without it, all of them in their order.
    """

    def pick(output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(pick(part) for part in output)
        whole = isinstance(output, Tensor) and output.shape[:2] == clean.tokens.shape
        return output[:, position] if whole and position is not None else output

    hidden = pick(clean.streams[at])
    with ExitStack() as stack:
        layers = decoder_layers(anatomy)
        for number, layer in enumerate(layers[:at]):

            def skip(hidden_states: Tensor, *_: Any, number: int = number, **__: Any) -> Tensor:
                return hidden if number == 0 else hidden_states

            stack.enter_context(replaced(layer, skip))
        for name, outputs in clean.before[at].items():
            child = layers[at].get_submodule(name)
            stack.enter_context(replaced(child, _replay(child.forward, [pick(output) for output in outputs])))
        yield


@contextmanager
def _recorded(layer: nn.Module, block: nn.Module, outputs: dict[str, list[Any]]) -> Iterator[None]:
    """Collects what the modules of a decoder layer give before its experts' block is entered."""
    reached = False

    def enter(_: nn.Module, __: Any) -> None:
        nonlocal reached
        reached = True

    with ExitStack() as stack:
        stack.callback(block.register_forward_pre_hook(enter).remove)
        for name, child in layer.named_children():
            if all(module is not block for module in child.modules()):

                def note(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                    if not reached:
                        outputs.setdefault(name, []).append(output)

                stack.callback(child.register_forward_hook(note).remove)
        yield


def _replay(underneath: Callable[..., Any], outputs: list[Any]) -> Callable[..., Any]:
    """A forward that hands out these outputs, one a call, and computes again after the last."""
    left = list(reversed(outputs))
    return lambda *args, **kwargs: left.pop() if left else underneath(*args, **kwargs)
