"""The local cache of the hub, as `huggingface_hub` keeps it."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

from experts.disk.hub_errors import asking
from experts.disk.names import HubName


def cache_folder() -> Path:
    """Where downloads are kept."""
    return Path(constants.HF_HUB_CACHE)


def unwritable(folder: Path | None = None) -> str:
    """Why nothing can be put into a folder, by default that of the cache; empty where it can."""
    folder = folder or cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


@contextmanager
def small_file(model: HubName, name: str, revision: str, commit: str) -> Iterator[Path]:
    """Yield a small file of a repository, kept in the cache.

    Where the cache cannot be written, the file is kept for as long as the block lasts.

    Args:
        model: its name on the hub
        name: of the file
        revision: what to ask the hub for
        commit: what the revision means, as the cache files it
    """
    is_cached = isinstance(try_to_load_from_cache(model.id, name, revision=commit), str)
    with ExitStack() as stack:
        folder = None
        if not is_cached and unwritable():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        with asking(model, f"reading {name}"):
            path = Path(hf_hub_download(model.id, name, revision=revision, cache_dir=folder))
        yield path
