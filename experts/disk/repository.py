"""A model on the hub at one commit: its files, their headers, and what of them is kept here."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download

from experts.disk.hub_cache import cache_folder, small_file, unwritable
from experts.disk.hub_errors import RESUMED, asking, interruptible, unreached
from experts.disk.hub_files import CARD, CONFIG, companions, top
from experts.disk.names import HubName
from experts.disk.shards import Checkpoint, Stored, open_checkpoint, read_header, read_json
from experts.disk.strict_json import LARGEST_INDEX
from experts.disk.weight_files import entry_file, is_index, shard_names, unread
from experts.errors import ExciseError
from experts.notes import tell

AT_ONCE = 8  # files that are asked for at a time


@dataclass(frozen=True)
class RepoFile:
    """A file of a repository.

    Attributes:
        size: bytes, None where the hub does not say
        blob: the cache's name of its content; empty = unknown
    """

    size: int | None
    blob: str = ""


@dataclass(frozen=True)
class Repository:
    """A model at one commit.

    Attributes:
        model: its name as the user wrote it
        commit: the revision that is read
        files: by their names, with slashes
        snapshot: its folder in the cache, None where nothing can be kept
        offline: why the cache answers without the hub, empty where the hub does
    """

    model: HubName
    commit: str
    files: Mapping[str, RepoFile]
    snapshot: Path | None
    offline: str = ""

    @property
    def name(self) -> str:
        """The name as the user wrote it."""
        return str(self.model)

    @property
    def pinned(self) -> str:
        """The name with the commit: it stays the same when the repository goes on."""
        return f"{self.model.id}@{self.commit}"

    @property
    def names(self) -> set[str]:
        """Files outside all folders."""
        return top(self.files)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return self._read_json(CONFIG)

    @cached_property
    def weights(self) -> list[str]:
        """Files that hold the weights, and their index if there is one; second copies are not among them."""
        if not is_index(self._entry):
            return [self._entry]
        shards = shard_names(self._read_json(self._entry), f"{self.name}/{self._entry}")
        if absent := [shard for shard in shards if shard not in self.files]:
            raise ExciseError(f"{self.name}: {self._lacks(absent)}, which {self._entry} names")
        return [self._entry, *shards]

    @cached_property
    def _entry(self) -> str:
        try:
            return entry_file(self.names, self.config, self.name)
        except ExciseError as error:
            if not self.offline:
                raise
            raise ExciseError(f"{error} (so it is in the local cache; {unreached(self.offline)})") from error

    def headers(self) -> Checkpoint:
        """Configuration, and names, types and shapes of all tensors.

        They come from the cache, or from the first bytes of every file.
        """
        if self.snapshot and not self.missing(self.weights):
            return open_checkpoint(self.snapshot)
        shards = [name for name in self.weights if not is_index(name)]
        with asking(self.model, "reading the headers of the weights"), ThreadPoolExecutor(AT_ONCE) as pool:
            headers = list(pool.map(self._header, shards))
        tensors: dict[str, Stored] = {}
        metadata = {}
        for shard, (of_shard, described) in zip(shards, headers, strict=True):
            tensors.update(of_shard)
            metadata[shard] = described
        hidden = tuple(unread(self.names, self._entry))
        return Checkpoint(Path(self.name), self.config, tensors, metadata, self._entry, hidden)

    def _header(self, shard: str) -> tuple[dict[str, Stored], dict[str, str]]:
        """Tensors and metadata of one file; on the hub offsets count from the end of the header."""
        if self.snapshot and not self.missing([shard]):
            return read_header(self.snapshot / shard)
        header = HfApi().parse_safetensors_file_metadata(self.model.id, shard, revision=self.commit)
        tensors = {}
        for name, info in header.tensors.items():
            tensors[name] = Stored(name, info.dtype, tuple(info.shape), Path(shard), *info.data_offsets)
        return tensors, header.metadata

    def companions(self) -> Path:
        """The folder with all but the weights: configuration, tokenizer, templates, code, card, licence."""
        names = companions(self.files)
        if self.offline and CARD not in names:
            tell(f"{self.name}: the local cache has no {CARD} of it, so its licence is not known")
        absent = self.missing(names)
        if absent and (closed := unwritable(self.snapshot)):
            listed = ", ".join(absent)
            tell(f"{self.name}: {listed} cannot be kept in {cache_folder()} ({closed}), and will be lacking")
        else:
            self._download(names)
        assert self.snapshot is not None, "a cache that cannot be written is refused before (check_room)"
        return self.snapshot

    def fetch(self) -> Path:
        """The folder with the weights as well; what is there already is not fetched again."""
        folder = self.companions()
        self._download(self.weights)
        return folder

    def needed(self) -> int:
        """Bytes still to be fetched before the model can be read, without what another commit brought."""
        if not self.missing(self.weights):
            return 0
        names = self.missing([*companions(self.files), *self.weights])
        files = [self.files[name] for name in names]
        return sum(file.size or 0 for file in files if not self._has_content(file.blob))

    def missing(self, names: Iterable[str]) -> list[str]:
        """Which of the files the cache does not hold whole."""
        return [name for name in names if not self._is_whole(name)]

    def _is_whole(self, name: str) -> bool:
        cached = self._cached_size(name)
        return cached is not None and self.files[name].size in (None, cached)

    def _has_content(self, blob: str) -> bool:
        """Whether the cache has some content, under whatever name."""
        if self.snapshot is None or not blob:
            return False
        return (self.snapshot.parent.parent / "blobs" / blob).is_file()

    def _cached_size(self, name: str) -> int | None:
        """Bytes of a file in the cache; None where it is not there."""
        try:
            return (self.snapshot / name).stat().st_size if self.snapshot else None
        except OSError:
            return None

    def _download(self, names: list[str]) -> None:
        """Fetch what of the files is missing."""
        absent = self.missing(names)
        if not absent:
            return
        with interruptible(), asking(self.model, "the download", RESUMED):
            for name in absent:
                if self._cached_size(name) is not None:  # of another size: cut off by a full disk or a crash
                    hf_hub_download(self.model.id, name, revision=self.commit, force_download=True)
            patterns = [escape(name) for name in absent]
            snapshot_download(
                self.model.id, revision=self.commit, allow_patterns=patterns, max_workers=AT_ONCE
            )
        if absent := self.missing(names):  # when the hub goes away the client is content with what there is
            raise ExciseError(f"{self.name}: the download broke off before {absent[0]}; {RESUMED}")

    def _read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the repository, through the cache."""
        with small_file(self.model, name, self.commit, self.commit) as path:
            return read_json(path, LARGEST_INDEX)

    def _lacks(self, names: list[str]) -> str:
        more = f" and {len(names) - 1} more files" if len(names) > 1 else ""
        if self.offline:
            return f"the local cache lacks {names[0]}{more}; {unreached(self.offline)}"
        return f"the repository has no {names[0]}{more}"
