"""Identity of weights: every byte counts. A file is read once, and again when it changes."""

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash
from tqdm import tqdm

from experts.cache import cache_folder
from experts.disk.shards import Checkpoint, FileState, Stored
from experts.errors import ExciseError
from experts.files import replacing

CHUNK = 2**22  # bytes read at once
KNOWN_FILE = "read-files.json"  # in the cache: state of a file -> digest of its tensors
MOST_KNOWN = 4096  # files that are remembered
SETTLED = 5.0  # seconds since the last change; sooner, another change might leave the same times


def fingerprint(checkpoint: Checkpoint) -> str:
    """Identity of a checkpoint: configuration, code that it names, and every byte of its tensors.

    Names, types and shapes of the tensors count too. Reading everything takes as long as the disk does; a
    file of the same place, length and times is not read again.

    Returns:
        16 hexadecimal digits.
    """
    digest = xxhash.xxh3_128(json.dumps(checkpoint.config, sort_keys=True).encode())
    if "auto_map" in checkpoint.config:
        digest_files(digest, checkpoint.folder.glob("*.py"))
    shards = _by_shard(checkpoint)
    known = _KnownDigests()
    with tqdm(total=checkpoint.size, desc="fingerprint", unit="B", unit_scale=True, delay=2) as bar:
        for shard in sorted(shards):
            digest.update(known.digest(shard, shards[shard], bar).encode())
    known.save()
    return digest.hexdigest()[:16]


def digest_files(digest: Any, files: Iterable[Path]) -> None:
    """Add names and contents of files to a digest, in the order of their names."""
    for file in sorted(files):
        try:
            digest.update(f"{file.name} ".encode(errors="surrogateescape") + file.read_bytes())
        except OSError as error:
            raise _unreadable(file, error) from error


def digest_ranges(file: Path, ranges: Iterable[tuple[int, int]], digest: Any, bar: Any = None) -> None:
    """Add the bytes of a file's ranges to a digest, one after the other.

    Args:
        file: what is read
        ranges: (start, end) in bytes
        digest: of xxhash
        bar: a tqdm bar that counts the bytes
    """
    try:
        with file.open("rb") as opened:
            for start, end in ranges:
                _digest_range(opened.fileno(), start, end, digest, bar)
    except OSError as error:
        raise _unreadable(file, error) from error


def _digest_range(descriptor: int, start: int, end: int, digest: Any, bar: Any) -> None:
    for offset in range(start, end, CHUNK):
        chunk = os.pread(descriptor, min(CHUNK, end - offset), offset)
        digest.update(chunk)
        if bar is not None:
            bar.update(len(chunk))


def _by_shard(checkpoint: Checkpoint) -> dict[Path, list[Stored]]:
    """Every file's tensors, in the order of its bytes."""
    shards: dict[Path, list[Stored]] = {}
    for tensor in sorted(checkpoint.tensors.values(), key=lambda tensor: tensor.start):
        shards.setdefault(tensor.file, []).append(tensor)
    return shards


class _KnownDigests:
    """Digests of files that were read before, by place and state.

    A cache that cannot be used costs a second reading.
    """

    def __init__(self) -> None:
        folder = cache_folder()
        self.path = folder and folder / KNOWN_FILE
        self.changed = False
        self.entries = _entries(self.path) if self.path else {}

    def digest(self, shard: Path, tensors: list[Stored], bar: Any) -> str:
        """Of names, types, shapes and bytes of a file's tensors, in the order of its bytes."""
        digest = xxhash.xxh3_128()
        for tensor in tensors:
            digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}".encode(errors="surrogateescape"))
        key = f"{digest.hexdigest()} {_state(shard)}"
        if key in self.entries:
            bar.update(sum(tensor.size for tensor in tensors))
            return self.entries[key]
        is_settled = time.time() - shard.stat().st_mtime > SETTLED
        digest_ranges(shard, [(tensor.start, tensor.end) for tensor in tensors], digest, bar)
        if is_settled:
            self.entries[key] = digest.hexdigest()
            self.changed = True
        return digest.hexdigest()

    def save(self) -> None:
        """Write the newest digests to the cache, if there are new ones."""
        if not self.path or not self.changed:
            return
        newest = dict(list(self.entries.items())[-MOST_KNOWN:])
        with suppress(OSError):  # the cache is optional
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as fresh:
                fresh.write_text(json.dumps(newest), encoding="utf-8")


def _entries(path: Path) -> dict[str, str]:
    """What the cache remembers; nothing where its file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, str)}


def _state(file: Path) -> str:
    """Place and state of a file. The time of its last change is part of it, which cannot be set back."""
    try:
        status = file.stat()
    except OSError as error:
        raise _unreadable(file, error) from error
    return f"{os.path.realpath(file)} {status.st_dev} {FileState.of(status)} {status.st_ctime_ns}"


def _unreadable(file: Path, error: OSError) -> ExciseError:
    return ExciseError(f"{file}: cannot be read ({error.strerror or error})")
