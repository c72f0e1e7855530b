"""A model in a folder or on the hub: headers first, weights when they are wanted."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from experts.disk.layout import Layout, lay_out
from experts.disk.names import HubName, hub_settings, parse_model
from experts.disk.shards import Checkpoint, open_checkpoint
from experts.disk.weight_files import regular_files
from experts.errors import ExciseError
from experts.units import human


class StoredModel(Protocol):
    """What is known of a model before its weights are here."""

    @property
    def name(self) -> str:
        """The folder, or organisation/name[@revision] as the user writes it."""

    @property
    def pinned(self) -> str:
        """A name that always means the same: on the hub, one with the commit."""

    @property
    def commit(self) -> str:
        """The commit on the hub; empty for a folder."""

    @property
    def names(self) -> set[str]:
        """Names of its files, without those in folders."""

    def headers(self) -> Checkpoint:
        """Configuration, and names, types and shapes of all tensors."""

    def companions(self) -> Path:
        """A folder with everything but the weights, downloaded if need be."""

    def needed(self) -> int:
        """Bytes that are still to be downloaded."""

    def fetch(self) -> Path:
        """The folder with the weights, downloaded if need be."""


@dataclass(frozen=True)
class Folder:
    """A model that is here already."""

    path: Path
    commit: str = ""

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def pinned(self) -> str:
        return str(self.path)

    @property
    def names(self) -> set[str]:
        return regular_files(self.path)

    def headers(self) -> Checkpoint:
        return open_checkpoint(self.path)

    def companions(self) -> Path:
        return self.path

    def needed(self) -> int:
        return 0

    def fetch(self) -> Path:
        return self.path


def find_model(text: str) -> StoredModel:
    """Find the model a user means; one on the hub is looked up there.

    Args:
        text: a folder, `demo`, or organisation/name[@revision]

    Raises:
        ExciseError: there is no such model.
    """
    name = parse_model(text)
    if not isinstance(name, HubName):
        return Folder(name)
    with hub_settings():
        from experts.disk.hub import find_repository

    return find_repository(name)


def model_folder(name: str) -> Path:
    """The folder of a model; one on the hub is downloaded (or found in the cache) first."""
    return find_model(name).fetch()


def open_anywhere(name: str) -> Checkpoint:
    """Open a local checkpoint, or the headers of one on the hub (a few requests, no weights)."""
    return find_model(name).headers()


def check_room(*models: StoredModel) -> None:
    """Refuse a download that the local cache could not hold.

    Args:
        models: all that will be fetched
    """
    needed = sum(model.needed() for model in models)
    if not needed:
        return
    from experts.disk.hub_cache import cache_folder, unwritable

    cache = cache_folder()
    names = " and ".join(model.name for model in models if model.needed())
    if reason := unwritable():
        raise ExciseError(
            f"{cache}: cannot be written ({reason}), and {names} would be kept there; "
            "HF_HOME names another folder"
        )
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise ExciseError(
            f"{cache}: {human(needed)} needed for {names}, {human(free)} free; "
            "free some, or set HF_HOME to a folder on another disk"
        )


def fetched(model: StoredModel, layout: Layout) -> Layout:
    """The layout of a model once its weights are here; they are downloaded where there is room for them."""
    check_room(model)
    return layout_in(model.fetch(), layout)


def layout_in(folder: Path, before: Layout) -> Layout:
    """The layout of a folder's files; what was read on the hub before has other offsets."""
    return before if before.checkpoint.folder == folder else lay_out(open_checkpoint(folder))
