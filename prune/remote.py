"""A checkpoint on the hub, read without downloading its weights: configuration and headers only. No torch."""

from pathlib import Path
from typing import Any

from experts.errors import ExciseError
from experts.weight_files import INDEX, SINGLE
from prune.locate import model_folder
from prune.shards import Checkpoint, Stored, open_checkpoint, read_json


def open_anywhere(name: str) -> Checkpoint:
    """A local checkpoint, or the headers of one on the hub (a few requests, no weights)."""
    if name == "demo" or Path(name).is_dir() or Path(name).is_absolute() or name.startswith(".") or name.count("/") != 1:
        return open_checkpoint(model_folder(name))
    return _open_remote(name)


def _open_remote(name: str) -> Checkpoint:
    from huggingface_hub import get_safetensors_metadata, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, NotASafetensorsRepoError, OfflineModeIsEnabled

    try:
        config = read_json(Path(hf_hub_download(name, "config.json")))
        found: Any = get_safetensors_metadata(name)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ExciseError(f"{name}: no such folder, and the hub cannot be reached") from error
    except NotASafetensorsRepoError as error:
        raise ExciseError(f"{name}: has no safetensors weights") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ExciseError(f"{name}: cannot be read ({str(error).strip().splitlines()[0]})") from error
    tensors = {
        tensor: Stored(tensor, info.dtype, tuple(info.shape), Path(file), *info.data_offsets)
        for file, header in found.files_metadata.items()
        for tensor, info in header.tensors.items()
    }
    metadata = {file: header.metadata for file, header in found.files_metadata.items()}
    return Checkpoint(Path(name), config, tensors, metadata, INDEX if found.sharded else SINGLE)
