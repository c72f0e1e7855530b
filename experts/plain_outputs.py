"""What a forward gives back, set in one place: fine-tunes leave options in config.json that would change it."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import GenerationConfig

# Losses of the router are made from the rows of all layers: with a router that is restricted or cut they cannot be.
PLAIN_OUTPUTS = {
    "output_router_logits": False,
    "output_hidden_states": False,
    "output_attentions": False,
    "return_dict": True,
}
# What of the settings of `generate` stays: token ids, and what changes the scores of tokens. The rest chooses other
# ways to search (beams, contrast, stop strings, caches of other packages), which lm-eval does not ask for or cannot give.
ANSWERS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "min_new_tokens",
)


def set_plain_outputs(model: Any) -> None:
    """From here on every forward of the model gives logits and nothing else, whatever its configuration asked for.

    Options that change the logits themselves stay as they are; `generate` gives the ids of one answer. The files of the
    checkpoint are not touched.
    """
    for config in _configurations(model):
        _set(config, PLAIN_OUTPUTS)
    if isinstance(settings := getattr(model, "generation_config", None), GenerationConfig):
        kept = {name: value for name in ANSWERS if (value := getattr(settings, name, None)) is not None}
        model.generation_config = type(settings)(**kept)


def _configurations(model: nn.Module) -> Iterator[Any]:
    """Every configuration object that a module of the model reads, each once."""
    found = {
        id(config): config
        for module in model.modules()
        if (config := getattr(module, "config", None)) is not None
    }
    yield from found.values()


def _set(options: Any, wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if getattr(options, name, None) not in (None, value):
            setattr(options, name, value)
