"""Load a network and its tokenizer from a checkpoint folder."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from experts.errors import ExciseError
from experts.memory import device_for
from experts.plain_outputs import set_plain_outputs
from experts.pretrained import align, auto_class, check_files, from_pretrained, refusing

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")


def load_network(
    folder: Path,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    device: torch.device | None = None,
    spread: bool = False,
) -> PreTrainedModel:
    """Load the network of a checkpoint folder, in evaluation mode.

    Its forwards return logits and nothing else (experts/plain_outputs.py).

    Args:
        folder: holds config.json and safetensors files
        dtype: precision in memory: auto (as stored), float32, bfloat16, float16
        trust_remote_code: run code that comes with the checkpoint
        device: where the weights go; by default the GPU if a fifth of its free memory is left, else the CPU
        spread: over all GPUs, as accelerate places layers

    Raises:
        ExciseError: the folder holds no safetensors checkpoint, or the network cannot be loaded.
    """
    check_files(folder)
    with refusing(folder, "the model"):
        network = from_pretrained(folder, dtype, trust_remote_code, _placement(device, spread=spread))
        if not spread:
            network.to(device or device_for(network.get_memory_footprint()))
        network.eval()
        align(network)
        set_plain_outputs(network)
    checked: PreTrainedModel = network
    return checked


def _placement(device: torch.device | None, *, spread: bool) -> dict[str, Any]:
    """Weights go to GPUs file by file: the whole model is never in main memory."""
    if spread:
        return {"device_map": "auto"}
    on_gpu = device is not None and device.type != "cpu"
    return {"device_map": {"": device}} if on_gpu else {}


def skeleton(
    folder: Path, trust_remote_code: bool = False, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Build the network without its weights, on the device `meta`: modules, names and shapes.

    This takes no longer than reading a configuration.

    Args:
        folder: holds config.json
        trust_remote_code: run code that comes with the checkpoint
        dtype: of the weights; by default the one that the configuration names

    Raises:
        ExciseError: the configuration describes no network that transformers can build.
    """
    with refusing(folder, "the model"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            network: PreTrainedModel = auto_class(config).from_config(
                config, trust_remote_code=trust_remote_code, **({} if dtype is None else {"dtype": dtype})
            )
    return network


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint folder.

    Raises:
        ExciseError: there is none, it cannot be loaded, or it turns any text into no tokens.
    """
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        # transformers would make an empty tokenizer of the model's class.
        raise ExciseError(
            f"{folder}: no tokenizer files (tokenizer.json, tokenizer.model, vocab.*); "
            "add those of the original model"
        )
    with refusing(folder, "the tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code
        )
        tokens = tokenizer("A text.", add_special_tokens=False)["input_ids"]
    if not tokens:
        raise ExciseError(
            f"{folder}: its tokenizer files make an empty {type(tokenizer).__name__}, which reads no text; "
            "add all files of the original model"
        )
    return tokenizer
