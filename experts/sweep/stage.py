"""The model's own forward, of which only some decoder layers are computed.

Layers below the span pass their input on. The first layer of the span gets the state that is known to enter
it. The layer after the span ends the forward, with what enters it. Embeddings, masks, rotary positions, the
final norm and the head are the model's own, and are made again at every stage.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NoReturn

from torch import Tensor, nn

from experts.anatomy import Anatomy
from experts.decoder import decoder_layers
from experts.seam import replaced

# What enters a decoder layer, by place or name of the argument: the residual stream, and whatever else lower
# layers hand upward.
State = dict[int | str, Tensor]
# Is shown a decoder layer that is about to run: its number, what enters it, and its named arguments.
Watch = Callable[[int, State, dict[str, Any]], None]


class _Left(Exception):  # noqa: N818 - not an error: the way out of a forward whose rest is not needed
    """Carries what enters the layer after the span."""

    def __init__(self, state: State) -> None:
        self.state = state


class Stage:
    """Runs spans of decoder layers.

    Attributes:
        handed_up: decoder layer -> number of values that it returns beside the stream, where there are some
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.model: Any = anatomy.model
        self.layers = decoder_layers(anatomy)
        self.handed_up: dict[int, int] = {}

    def run(
        self,
        span: range,
        state: State | None,
        inputs: dict[str, Any],
        *,
        head: bool = True,
        watch: Watch | None = None,
    ) -> State | Tensor | None:
        """Compute some decoder layers.

        Args:
            span: the decoder layers
            state: what enters the first of them; None = what the embeddings make of the inputs
            inputs: of the model's forward
            head: after the last layer, compute logits
            watch: is shown what enters every layer of the span

        Returns:
            What enters the next layer; after the last one the logits [B, W, V], or None without head.
        """
        handed: list[Any] = list(state.values()) if state else []
        with ExitStack() as stack:
            for number, layer in enumerate(self.layers[: span.stop + 1]):
                enters = state if number == span.start else None
                stack.enter_context(
                    replaced(layer, self._forward(number, layer, span, enters, handed, watch))
                )
            try:
                return self._forwarded(inputs, head)
            except _Left as left:
                return left.state

    def _forwarded(self, inputs: dict[str, Any], head: bool) -> Tensor | None:
        if not head:
            self.model.base_model(**inputs)
            return None
        logits: Tensor = self.model(**inputs).logits
        return logits

    def _forward(
        self,
        number: int,
        layer: nn.Module,
        span: range,
        enters: State | None,
        handed: list[Any],
        watch: Watch | None,
    ) -> Callable[..., Any]:
        """What a decoder layer computes in this stage."""
        if number < span.start:
            return _pass_on(self.handed_up.get(number, 0))
        if number == span.stop:
            return _leave(handed)
        underneath = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = _with_state(args, kwargs, enters)
            if watch is not None:
                watch(number, state_of(args, kwargs, handed), kwargs)
            output = underneath(*args, **kwargs)
            if isinstance(output, tuple):
                self.handed_up[number] = len(output) - 1
                handed.extend(output)
            else:
                handed.append(output)
            return output

        return forward


def stream_of(state: State) -> Tensor:
    """The residual stream [B, W, H] in what enters a decoder layer."""
    return state[0] if 0 in state else state["hidden_states"]


def state_of(args: tuple[Any, ...], kwargs: dict[str, Any], handed: list[Any]) -> State:
    """What enters a decoder layer: the stream, and the tensors among its arguments that were handed up."""
    arguments: dict[int | str, Any] = dict(enumerate(args))
    arguments.update(kwargs)
    stream = 0 if args else "hidden_states"
    known = {id(value) for value in handed if isinstance(value, Tensor)}
    return {key: value for key, value in arguments.items() if key == stream or id(value) in known}


def _with_state(
    args: tuple[Any, ...], kwargs: dict[str, Any], state: State | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A layer's arguments with the state in the places of what was passed on."""
    if state is None:
        return args, kwargs
    by_place, by_name = list(args), dict(kwargs)
    for key, value in state.items():
        if isinstance(key, int):
            by_place[key] = value
        else:
            by_name[key] = value
    return tuple(by_place), by_name


def _pass_on(more: int) -> Callable[..., Any]:
    """A decoder layer that does nothing. more: values that it returns beside the stream."""

    def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states, *[None] * more) if more else hidden_states

    return forward


def _leave(handed: list[Any]) -> Callable[..., NoReturn]:
    """A decoder layer that ends the forward."""

    def forward(*args: Any, **kwargs: Any) -> NoReturn:
        raise _Left(state_of(args, kwargs, handed))

    return forward
