"""What whole loads and streamed ones have in common: which class, which options, and what is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from experts.dequantise import dequantising
from experts.disk.strict_json import read_object
from experts.disk.weight_files import entry_file, regular_files
from experts.errors import ExciseError, let_through, one_line
from experts.notes import log_traceback

ALIGNMENT = 64  # bytes; of every allocation of torch


def check_files(folder: Path) -> None:
    """Refuse weights that transformers would read in another way than Excise does."""
    config = read_object(
        folder / "config.json", "no such file; a checkpoint folder has config.json and *.safetensors"
    )
    entry_file(regular_files(folder), config, str(folder))


def from_pretrained(
    folder: Path, dtype: str, trust_remote_code: bool, placement: dict[str, Any] | None = None
) -> Any:
    """What transformers loads, dequantised; weights that would be random are an error.

    Args:
        folder: of the checkpoint
        dtype: precision in memory
        trust_remote_code: run code that comes with the checkpoint
        placement: options of `from_pretrained` that say where the weights go; None = to the CPU
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    network, report = auto_class(config).from_pretrained(
        folder,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        **(placement or {}),
        **dequantising(config),
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"the checkpoint lacks {len(missing)} weights of {type(network).__name__} (first: {missing[0]}), "
            "which would be initialised at random"
        )
    return network


def auto_class(config: Any) -> Any:
    """The class that reads text.

    For a multimodal wrapper without one of its own, that is the one that reads images too.
    """
    with_images = AutoModelForImageTextToText._model_mapping
    text_alone = AutoModelForCausalLM._model_mapping
    if type(config) in with_images and type(config) not in text_alone:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


@torch.no_grad()
def align(module: nn.Module) -> None:
    """Copy weights that lie anywhere in a file's buffer to where torch would put them.

    CPU kernels round by the alignment of their operands: the same weights, read behind a header of another
    length, would compute other logits.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


@contextmanager
def refusing(folder: Path, subject: str) -> Iterator[None]:
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
