"""Which files are a model's weights, as transformers decides it: for reader, export and fingerprint alike. No torch.

In this order (transformers 5.23, `_get_resolved_checkpoint_files`): shards of a distributed checkpoint, the file that
config.json names under `transformers_weights`, one `model.safetensors`, an index of shards. Only regular files count;
a link counts as what it leads to.
"""

import re
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from experts.errors import ExciseError

SINGLE_SHARD = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
NAMED = "transformers_weights"  # key of config.json
OTHER_CONFIG = "configuration_files"  # key of config.json: a file for each version of transformers
DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")  # of torch.distributed.checkpoint
PICKLED = (".bin", ".pt", ".pth")
WEIGHTS = (".safetensors", ".safetensors.index.json")


def entry_file(names: Collection[str], config: Mapping[str, Any], where: str) -> str:
    """The file that reading the weights begins with: all of them, or the index of their shards.

    names: of the regular files of a folder, or of a repository on the hub; where: its name, for errors. Raises
    ExciseError where transformers would load something else than these files, and where there are none.
    """
    _check_alike(names, config, where)
    named = config.get(NAMED)
    if named is not None:
        return _named(named, names, where)
    for name in (SINGLE_SHARD, INDEX_FILE):
        if name in names:
            return name
    if any(name.endswith(PICKLED) for name in names):
        raise ExciseError(
            f"{where}: only pickled weights (*.bin), which can run code when opened; convert them to safetensors first"
        )
    raise ExciseError(f"{where}: neither {SINGLE_SHARD} nor {INDEX_FILE}; not a safetensors checkpoint")


def is_index(name: str) -> bool:
    """Whether a file of weights is the index of several."""
    return name.endswith(".index.json")


def unread(names: Collection[str], entry: str) -> list[str]:
    """Other files of weights at the top of the folder that nobody reads: a single file hides an index and its shards."""
    return [INDEX_FILE] if entry == SINGLE_SHARD and INDEX_FILE in names else []


def shard_names(index: Mapping[str, Any], where: str) -> list[str]:
    """Files that an index names, each once and sorted. Raises ExciseError where it could not be followed, or leads out of the folder."""
    weights = index.get("weight_map")
    if (
        not isinstance(weights, dict)
        or not weights
        or not all(isinstance(name, str) for name in weights.values())
    ):
        raise ExciseError(f"{where}: no weight_map of tensor names to shard names")
    for name in set(weights.values()):
        if not _is_plain(name) or not name.endswith(".safetensors"):
            raise ExciseError(f"{where}: shard {name!r} is not a plain *.safetensors name in this folder")
    if not isinstance(index.get("metadata"), dict):
        raise ExciseError(
            f'{where}: no metadata, without which transformers cannot read it; add "metadata": {{}}'
        )
    return sorted(set(weights.values()))


def regular_files(folder: Path) -> set[str]:
    """Names of the regular files of a folder, links included that lead to one. Raises ExciseError where it cannot be listed."""
    try:
        return {file.name for file in folder.iterdir() if file.is_file()}
    except FileNotFoundError as error:
        raise ExciseError(f"{folder}: no such folder") from error
    except OSError as error:
        raise ExciseError(f"{folder}: cannot be read ({error.strerror or error})") from error


def _check_alike(names: Collection[str], config: Mapping[str, Any], where: str) -> None:
    """Refuses what transformers reads in another way than as one set of safetensors files."""
    if ADAPTER in names:
        raise ExciseError(
            f"{where}: holds an adapter ({ADAPTER}), which is loaded on top of the weights but would not be pruned with them; merge it "
            "into the weights (peft: merge_and_unload, then save_pretrained), or move it out of the folder"
        )
    if shard := next((name for name in sorted(names) if DISTRIBUTED.fullmatch(name)), ""):
        raise ExciseError(
            f"{where}: {shard} belongs to a distributed checkpoint, which is loaded instead of {SINGLE_SHARD}; write the model with "
            "save_pretrained, or move those shards out of the folder"
        )
    if config.get(OTHER_CONFIG):
        raise ExciseError(
            f"{where}/config.json: {OTHER_CONFIG} names other configurations for other versions of transformers; keep the one for this "
            "version as config.json and take the key out"
        )


def _named(name: Any, names: Collection[str], where: str) -> str:
    if not isinstance(name, str) or not _is_plain(name) or not name.endswith(WEIGHTS):
        raise ExciseError(
            f"{where}/config.json: {NAMED} is {reprlib.repr(name)}, expected a *.safetensors file of this folder, or an index of some"
        )
    if name not in names:
        raise ExciseError(
            f"{where}: {name}, which config.json names under {NAMED}, is not there; download the checkpoint again"
        )
    return name


def _is_plain(name: str) -> bool:
    return Path(name).name == name and not {"\\", "\0"}.intersection(name)
