"""A model on the hub at one commit: its files, their headers, and where they are kept here. No torch.

`huggingface_hub` does the work: its cache, its retries, its progress bars, its login.
Where the hub cannot be asked, the cache answers alone.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache

from experts.disk.hub_errors import AGAIN, OFFLINE, RESUMED, answer, asking, interruptible, of_disk, reason
from experts.disk.hub_files import CARD, CONFIG, companions, top
from experts.disk.names import HubName
from experts.disk.shards import Checkpoint, Stored, open_checkpoint, read_header, read_json
from experts.disk.strict_json import LARGEST_INDEX
from experts.disk.weight_files import entry_file, is_index, shard_names, unread
from experts.errors import ExciseError
from experts.notes import tell

AT_ONCE = 8  # files that are asked for at a time

if constants.HF_HUB_DISABLE_PROGRESS_BARS:  # --quiet
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


@dataclass(frozen=True)
class File:
    """Of a repository. size: bytes, None where nobody says; blob: the cache's name of its content."""

    size: int | None
    blob: str = ""


@dataclass(frozen=True)
class Repository:
    """A model at one commit.

    snapshot: its folder in the cache, None where nothing can be kept;
    alone: why the cache answers without the hub, empty where the hub does.
    """

    asked: HubName
    commit: str
    files: Mapping[str, File]
    snapshot: Path | None
    alone: str = ""

    @property
    def name(self) -> str:
        """As the user means it."""
        return str(self.asked)

    @property
    def pinned(self) -> str:
        """With the commit: what stays the same when the repository goes on."""
        return f"{self.asked.id}@{self.commit}"

    @property
    def names(self) -> set[str]:
        """Files that stand in no folder."""
        return top(self.files)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return self._small(CONFIG)

    @cached_property
    def weights(self) -> list[str]:
        """Files that hold the weights, and their index if there is one; second copies are not among them."""
        if not is_index(self._entry):
            return [self._entry]
        shards = shard_names(self._small(self._entry), f"{self.name}/{self._entry}")
        if absent := [shard for shard in shards if shard not in self.files]:
            raise ExciseError(f"{self.name}: {self._lacks(absent)}, which {self._entry} names")
        return [self._entry, *shards]

    @cached_property
    def _entry(self) -> str:
        try:
            return entry_file(self.names, self.config, self.name)
        except ExciseError as error:
            if not self.alone:
                raise
            raise ExciseError(f"{error} (so it is in the local cache; {_unreached(self.alone)})") from error

    def headers(self) -> Checkpoint:
        """Of all tensors names, types and shapes: from the cache, or from the first bytes of every file."""
        if self.snapshot and not self.missing(self.weights):
            return open_checkpoint(self.snapshot)
        shards = [name for name in self.weights if not is_index(name)]
        with asking(self.asked, "reading the headers of the weights"), ThreadPoolExecutor(AT_ONCE) as pool:
            found = dict(zip(shards, pool.map(self._header, shards), strict=True))
        tensors = {name: tensor for header, _ in found.values() for name, tensor in header.items()}
        metadata = {shard: described for shard, (_, described) in found.items()}
        return Checkpoint(
            Path(self.name),
            self.config,
            tensors,
            metadata,
            self._entry,
            tuple(unread(self.names, self._entry)),
        )

    def _header(self, shard: str) -> tuple[dict[str, Stored], dict[str, str]]:
        """Tensors and metadata of one file; on the hub offsets count from the end of the header."""
        if self.snapshot and not self.missing([shard]):
            return read_header(self.snapshot / shard)
        found = HfApi().parse_safetensors_file_metadata(self.asked.id, shard, revision=self.commit)
        tensors = {}
        for name, info in found.tensors.items():
            tensors[name] = Stored(name, info.dtype, tuple(info.shape), Path(shard), *info.data_offsets)
        return tensors, found.metadata

    def companions(self) -> Path:
        """The folder with all but the weights: configuration, tokenizer, templates, code, card, licence."""
        names = companions(self.files)
        if self.alone and CARD not in names:
            tell(f"{self.name}: the local cache has no {CARD} of it, so its licence is not known")
        if self.missing(names) and (closed := unwritable(self.snapshot)):
            absent = ", ".join(self.missing(names))
            tell(f"{self.name}: {absent} cannot be kept in {cache_folder()} ({closed}), and will be lacking")
        else:
            self._download(names)
        assert self.snapshot is not None, "a cache that cannot be written is refused before (check_room)"
        return self.snapshot

    def fetch(self) -> Path:
        """The folder with the weights as well; what is there already is not fetched again."""
        folder = self.companions()
        self._download(self.weights)
        return folder

    def missing(self, names: Iterable[str]) -> list[str]:
        """Which of the files the cache does not hold whole."""
        return [name for name in names if not self._whole(name)]

    def _whole(self, name: str) -> bool:
        held = self._held(name)
        return held is not None and self.files[name].size in (None, held)

    def needed(self) -> int:
        """Bytes still to be fetched before the model can be read, without what another commit brought."""
        if not self.missing(self.weights):
            return 0
        names = self.missing([*companions(self.files), *self.weights])
        return sum(self.files[name].size or 0 for name in names if not self._known(self.files[name].blob))

    def _known(self, blob: str) -> bool:
        """Whether the cache has some content, under whatever name."""
        return (
            self.snapshot is not None
            and blob != ""
            and (self.snapshot.parent.parent / "blobs" / blob).is_file()
        )

    def _held(self, name: str) -> int | None:
        """Bytes of a file in the cache; None where it is not there."""
        try:
            return (self.snapshot / name).stat().st_size if self.snapshot else None
        except OSError:
            return None

    def _download(self, names: list[str]) -> None:
        absent = self.missing(names)
        if not absent:
            return
        with interruptible(), asking(self.asked, "the download", RESUMED):
            for name in absent:
                if self._held(name) is not None:  # of another size: cut off by a full disk or a crash
                    hf_hub_download(self.asked.id, name, revision=self.commit, force_download=True)
            wanted = [escape(name) for name in absent]
            snapshot_download(self.asked.id, revision=self.commit, allow_patterns=wanted, max_workers=AT_ONCE)
        if absent := self.missing(names):  # when the hub goes away the client is content with what there is
            raise ExciseError(f"{self.name}: the download broke off before {absent[0]}; {RESUMED}")

    def _small(self, name: str) -> dict[str, Any]:
        """A JSON file of the repository, through the cache."""
        with _kept(self.asked, name, self.commit, self.commit) as path:
            return read_json(path, LARGEST_INDEX)

    def _lacks(self, names: list[str]) -> str:
        shown = names[0] + (f" and {len(names) - 1} more files" if names[1:] else "")
        if self.alone:
            return f"the local cache lacks {shown}; {_unreached(self.alone)}"
        return f"the repository has no {shown}"


def find_repository(asked: HubName) -> Repository:
    """The model at the commit that its revision means now. Raises ExciseError where there is none to read."""
    try:
        wait, revision = constants.HF_HUB_DOWNLOAD_TIMEOUT, asked.revision or None
        info = HfApi().model_info(asked.id, revision=revision, files_metadata=True, timeout=wait)
        commit, listed = info.sha or "", info.siblings or []
    except Exception as error:  # whatever it was: the hub did not answer, and the cache may have the model
        if said := answer(asked, error) or of_disk(error):
            raise ExciseError(f"{asked}: {said}") from error
        return _cached(asked, reason(error))
    blobs = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in listed}
    files = {file.rfilename: File(file.size, blobs[file.rfilename] or "") for file in listed}
    if CONFIG not in files:
        gguf = " (GGUF is for llama.cpp alone)" if any(name.endswith(".gguf") for name in files) else ""
        told = f"the repository has no {CONFIG}, so it is no model that transformers could load{gguf}"
        raise ExciseError(f"{asked}: {told}")
    return Repository(asked, commit, files, _snapshot(asked, commit))


def _snapshot(asked: HubName, commit: str) -> Path | None:
    """The model's folder in the cache, with its configuration; the cache learns what the revision means now."""
    with _kept(asked, CONFIG, asked.revision or constants.DEFAULT_REVISION, commit) as path:
        folder = path.parent
    if folder.name != commit:
        raise ExciseError(f"{asked}: changed on the hub while it was being read; run the command again")
    return folder if folder.is_dir() else None


def _cached(asked: HubName, alone: str) -> Repository:
    """The model as the local cache has it."""
    found = try_to_load_from_cache(asked.id, CONFIG, revision=asked.revision or None)
    if not isinstance(found, str):
        told = f"no such folder, and {_unreached(alone)}; it is not in the local hub cache ({cache_folder()})"
        raise ExciseError(f"{asked}: {told}; {'unset HF_HUB_OFFLINE' if alone == OFFLINE else AGAIN}")
    snapshot = Path(found).parent
    held = [path for path in snapshot.rglob("*") if path.is_file()]
    files = {str(path.relative_to(snapshot)): File(path.stat().st_size) for path in held}
    if alone != OFFLINE:
        tell(f"{asked}: {_unreached(alone)}; taken as the local cache has it, commit {snapshot.name}")
    return Repository(asked, snapshot.name, files, snapshot, alone)


def _unreached(why: str) -> str:
    return f"the hub cannot be reached ({why})"


@contextmanager
def _kept(asked: HubName, name: str, revision: str, commit: str) -> Iterator[Path]:
    """A small file in the cache; where that cannot be written, for as long as it is read."""
    held = isinstance(try_to_load_from_cache(asked.id, name, revision=commit), str)
    with ExitStack() as stack:
        cache = None if held or not unwritable() else stack.enter_context(tempfile.TemporaryDirectory())
        with asking(asked, f"reading {name}"):
            path = Path(hf_hub_download(asked.id, name, revision=revision, cache_dir=cache))
        yield path


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
