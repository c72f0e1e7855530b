"""What a forward gives back, set in one place: fine-tunes leave options in config.json that would change it."""

from collections.abc import Iterator
from typing import Any

from torch import nn

# Losses of the router are made from the rows of all layers: with a router that is restricted or cut they cannot be.
PLAIN_OUTPUTS = {
    "output_router_logits": False,
    "output_hidden_states": False,
    "output_attentions": False,
    "return_dict": True,
}
# Of `generate`: token ids, one answer each.
PLAIN_ANSWERS = {
    "return_dict_in_generate": False,
    "output_scores": False,
    "output_logits": False,
    "output_hidden_states": False,
    "output_attentions": False,
    "num_return_sequences": 1,
}


def set_plain_outputs(model: nn.Module) -> None:
    """From here on every forward of the model gives logits and nothing else, whatever its configuration asked for.

    Options that change the logits themselves stay as they are. The checkpoint's config.json is not touched.
    """
    for config in _configurations(model):
        _set(config, PLAIN_OUTPUTS)
    _set(getattr(model, "generation_config", None), PLAIN_ANSWERS)


def _configurations(model: nn.Module) -> Iterator[Any]:
    """Every configuration object that a module of the model reads, each once."""
    found = {id(config): config for module in model.modules() if (config := getattr(module, "config", None)) is not None}
    yield from found.values()


def _set(options: Any, wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if getattr(options, name, None) not in (None, value):
            setattr(options, name, value)
