"""What a forward returns, set in one place: fine-tunes leave options in config.json that would change it."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import GenerationConfig

# The router's loss needs the logits of all experts in all layers: a restricted or cut router has fewer.
PLAIN_OUTPUTS = {
    "output_router_logits": False,
    "output_hidden_states": False,
    "output_attentions": False,
    "return_dict": True,
}
# Settings of `generate` that stay: token ids, and what changes the scores of tokens. The others choose
# another search (beams, contrast, stop strings, caches of other packages), which lm-eval does not ask for or
# cannot give.
KEPT_SETTINGS = (
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
    """Let every forward of the model return logits and nothing else, whatever its configuration asks for.

    Options that change the logits themselves stay; `generate` returns the ids of one answer. The files of the
    checkpoint are not touched.
    """
    for config in _configurations(model):
        _set(config, PLAIN_OUTPUTS)
    settings = getattr(model, "generation_config", None)
    if isinstance(settings, GenerationConfig):
        values = {name: getattr(settings, name, None) for name in KEPT_SETTINGS}
        given = {name: value for name, value in values.items() if value is not None}
        model.generation_config = type(settings)(**given)


def _configurations(model: nn.Module) -> Iterator[Any]:
    """Every configuration object that a module of the model reads, each once."""
    configs = [getattr(module, "config", None) for module in model.modules()]
    once = {id(config): config for config in configs if config is not None}
    yield from once.values()


def _set(config: Any, options: dict[str, Any]) -> None:
    for name, value in options.items():
        if getattr(config, name, None) not in (None, value):
            setattr(config, name, value)
