"""Which files are a model's weights, as transformers decides it.

In this order (transformers 5.23, `_get_resolved_checkpoint_files`): shards of a distributed checkpoint, the
file that config.json names under `transformers_weights`, one `model.safetensors`, an index of shards. Only
regular files count; a link counts as what it leads to.
"""

import re
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from experts.errors import ExciseError

SINGLE_SHARD = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS_KEY = "transformers_weights"  # of config.json
OTHER_CONFIGS_KEY = "configuration_files"  # of config.json: a file for each version of transformers
DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")  # of torch.distributed.checkpoint
PICKLED_SUFFIXES = (".bin", ".pt", ".pth")
WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json")


def entry_file(names: Collection[str], config: Mapping[str, Any], where: str) -> str:
    """The file that reading the weights begins with: all of them, or the index of their shards.

    Args:
        names: of the regular files of a folder, or of a repository on the hub
        config: of config.json
        where: name of the folder or repository, for errors

    Raises:
        ExciseError: there are no weights, or transformers would load something else than these files.
    """
    _check_read_alike(names, config, where)
    named = config.get(WEIGHTS_KEY)
    if named is not None:
        return _named_file(named, names, where)
    for name in (SINGLE_SHARD, INDEX_FILE):
        if name in names:
            return name
    if any(name.endswith(PICKLED_SUFFIXES) for name in names):
        raise ExciseError(
            f"{where}: only pickled weights (*.bin), which can run code when opened; "
            "convert them to safetensors first"
        )
    raise ExciseError(f"{where}: neither {SINGLE_SHARD} nor {INDEX_FILE}; not a safetensors checkpoint")


def is_index(name: str) -> bool:
    """Whether a file of weights is the index of several."""
    return name.endswith(".index.json")


def unread(names: Collection[str], entry: str) -> list[str]:
    """Files of weights beside the entry that nobody reads: a single file hides an index and its shards."""
    return [INDEX_FILE] if entry == SINGLE_SHARD and INDEX_FILE in names else []


def shard_names(index: Mapping[str, Any], where: str) -> list[str]:
    """Files that an index names, each once and sorted.

    Args:
        index: parsed
        where: its name, for errors

    Raises:
        ExciseError: it cannot be followed, or leads out of the folder.
    """
    weight_map = index.get("weight_map")
    if not _is_weight_map(weight_map):
        raise ExciseError(f"{where}: no weight_map of tensor names to shard names")
    names: list[str] = sorted(set(weight_map.values()))
    for name in names:
        if not _is_plain(name) or not name.endswith(".safetensors"):
            raise ExciseError(f"{where}: shard {name!r} is not a plain *.safetensors name in this folder")
    if not isinstance(index.get("metadata"), dict):
        raise ExciseError(
            f'{where}: no metadata, without which transformers cannot read it; add "metadata": {{}}'
        )
    return names


def regular_files(folder: Path) -> set[str]:
    """Names of the regular files of a folder, and of links that lead to one.

    Raises:
        ExciseError: the folder cannot be listed.
    """
    try:
        return {file.name for file in folder.iterdir() if file.is_file()}
    except FileNotFoundError as error:
        raise ExciseError(f"{folder}: no such folder") from error
    except OSError as error:
        raise ExciseError(f"{folder}: cannot be read ({error.strerror or error})") from error


def _check_read_alike(names: Collection[str], config: Mapping[str, Any], where: str) -> None:
    """Refuse what transformers reads in another way than as one set of safetensors files."""
    if ADAPTER_CONFIG in names:
        raise ExciseError(
            f"{where}: holds an adapter ({ADAPTER_CONFIG}), which is loaded on top of the weights "
            "but would not be pruned with them; merge it into the weights "
            "(peft: merge_and_unload, then save_pretrained), or move it out of the folder"
        )
    if shard := next((name for name in sorted(names) if DISTRIBUTED.fullmatch(name)), ""):
        raise ExciseError(
            f"{where}: {shard} belongs to a distributed checkpoint, which is loaded instead of "
            f"{SINGLE_SHARD}; write the model with save_pretrained, or move those shards out of the folder"
        )
    if config.get(OTHER_CONFIGS_KEY):
        raise ExciseError(
            f"{where}/config.json: {OTHER_CONFIGS_KEY} names other configurations for other versions of "
            "transformers; keep the one for this version as config.json and take the key out"
        )


def _named_file(name: Any, names: Collection[str], where: str) -> str:
    """The file that config.json names."""
    if not isinstance(name, str) or not _is_plain(name) or not name.endswith(WEIGHT_SUFFIXES):
        raise ExciseError(
            f"{where}/config.json: {WEIGHTS_KEY} is {reprlib.repr(name)}, "
            "expected a *.safetensors file of this folder, or an index of some"
        )
    if name not in names:
        raise ExciseError(
            f"{where}: {name}, which config.json names under {WEIGHTS_KEY}, is not there; "
            "download the checkpoint again"
        )
    return name


def _is_weight_map(value: Any) -> TypeGuard[dict[str, str]]:
    """Whether a value maps names to names, and is not empty."""
    return isinstance(value, dict) and bool(value) and all(isinstance(name, str) for name in value.values())


def _is_plain(name: str) -> bool:
    return Path(name).name == name and not {"\\", "\0"}.intersection(name)
