"""Load a network and its tokenizer from a checkpoint folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from experts.disk.strict_json import read_object
from experts.disk.weight_files import entry_file, regular_files
from experts.errors import ExciseError, let_through, one_line
from experts.notes import log_traceback
from experts.plain_outputs import set_plain_outputs

ALIGNMENT = 64  # bytes; of every allocation of torch
SHARE = 0.8  # of a GPU's free memory that the weights may take; the rest is for the work
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")


def load_network(
    folder: Path, dtype: str = "auto", trust_remote_code: bool = False, device: torch.device | None = None
) -> PreTrainedModel:
    """Load the network of a checkpoint folder, in evaluation mode.

    Its forwards return logits and nothing else (experts/plain_outputs.py).

    Args:
        folder: holds config.json and safetensors files
        dtype: precision in memory: auto (as stored), float32, bfloat16, float16
        trust_remote_code: run code that comes with the checkpoint
        device: where the weights go; by default the GPU if a fifth of its free memory is left, else the CPU

    Raises:
        ExciseError: the folder holds no safetensors checkpoint, or the network cannot be loaded.
    """
    _check_files(folder)
    with _refusing(folder, "the model"):
        network = _from_pretrained(folder, dtype, trust_remote_code)
        network.to(device or best_device(network)).eval()
        _align(network)
        set_plain_outputs(network)
    checked: PreTrainedModel = network
    return checked


def skeleton(folder: Path, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build the network without its weights, on the device `meta`: modules, names and shapes.

    This takes no longer than reading a configuration.

    Raises:
        ExciseError: the configuration describes no network that transformers can build.
    """
    with _refusing(folder, "the model"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            network: PreTrainedModel = _auto_class(config).from_config(
                config, trust_remote_code=trust_remote_code
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
    with _refusing(folder, "the tokenizer"):
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


def best_device(network: Any) -> torch.device:
    """The GPU where the weights leave a fifth of its free memory for the work, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    free, _ = torch.cuda.mem_get_info()
    fits = network.get_memory_footprint() < SHARE * free
    return torch.device("cuda" if fits else "cpu")


def _check_files(folder: Path) -> None:
    """Refuse weights that transformers would read in another way than Excise does."""
    config = read_object(
        folder / "config.json", "no such file; a checkpoint folder has config.json and *.safetensors"
    )
    entry_file(regular_files(folder), config, str(folder))


def _from_pretrained(folder: Path, dtype: str, trust_remote_code: bool) -> Any:
    """What transformers loads; weights that would be random are an error."""
    auto_class = _auto_class(AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code))
    network, report = auto_class.from_pretrained(
        folder, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"the checkpoint lacks {len(missing)} weights of {type(network).__name__} (first: {missing[0]}), "
            "which would be initialised at random"
        )
    return network


def _auto_class(config: Any) -> Any:
    """The class that reads text.

    For a multimodal wrapper without one of its own, that is the one that reads images too.
    """
    with_images = AutoModelForImageTextToText._model_mapping
    text_alone = AutoModelForCausalLM._model_mapping
    if type(config) in with_images and type(config) not in text_alone:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


@torch.no_grad()
def _align(network: Any) -> None:
    """Copy weights that lie anywhere in a file's buffer to where torch would put them.

    CPU kernels round by the alignment of their operands: the same weights, read behind a header of another
    length, would compute other logits.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


@contextmanager
def _refusing(folder: Path, subject: str) -> Iterator[None]:
    """Turn whatever a library raises inside the block into one line that names the folder.

    Of files that do not fit together transformers and tokenizers raise anything, bare exceptions included.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ExciseError(
            f"{folder}: not enough memory on the GPU ({one_line(error)}); "
            "set CUDA_VISIBLE_DEVICES= to use the CPU"
        ) from error
    except Exception as error:
        let_through(error)
        log_traceback(error)
        reason = _about_remote_code(error) or f"{subject} cannot be loaded ({one_line(error)})"
        raise ExciseError(f"{folder}: {reason}") from error


def _about_remote_code(error: BaseException) -> str:
    """What to do where transformers refuses to run a checkpoint's own code; empty for other errors."""
    if "trust_remote_code" not in str(error):
        return ""
    return (
        "needs Python code that comes with the checkpoint, which is run only if you say so: read it, "
        "then put `trust_remote_code: true` into the recipe (--set trust_remote_code=true), "
        "or give `excise effects` --trust-remote-code"
    )
