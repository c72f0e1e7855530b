"""Identity of weights: every byte counts, read once and remembered as long as a file stays what it is. No torch."""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash
from tqdm import tqdm

from experts.cache import cache_folder
from experts.disk.shards import Checkpoint, FileState, Stored
from experts.errors import ExciseError
from experts.files import replacing

CHUNK = 2**22  # bytes read at once
KNOWN = "read-files.json"  # in the cache: state of a file -> digest of its tensors
MOST_KNOWN = 4096  # files that are remembered
SETTLED = 5.0  # seconds since the last change; sooner, another change might leave the same times


def fingerprint(checkpoint: Checkpoint) -> str:
    """Identity of a checkpoint: configuration, code that it names, and name, type, shape and every byte of its tensors.

    Reading everything takes as long as the disk does; a file of the same place, length and times is not read again.
    """
    digest = xxhash.xxh3_128(json.dumps(checkpoint.config, sort_keys=True).encode())
    if "auto_map" in checkpoint.config:
        digest_files(digest, checkpoint.folder.glob("*.py"))
    inside: dict[Path, list[Stored]] = {}
    for tensor in sorted(checkpoint.tensors.values(), key=lambda tensor: tensor.start):
        inside.setdefault(tensor.file, []).append(tensor)
    known = _Known()
    with tqdm(total=checkpoint.size, desc="fingerprint", unit="B", unit_scale=True, delay=2) as bar:
        for shard in sorted(inside):
            digest.update(known.digest(shard, inside[shard], bar).encode())
    known.keep()
    return digest.hexdigest()[:16]


def digest_files(digest: Any, files: Iterable[Path]) -> None:
    """Adds names and contents of files, in the order of their names."""
    for file in sorted(files):
        try:
            digest.update(f"{file.name} ".encode(errors="surrogateescape") + file.read_bytes())
        except OSError as error:
            raise ExciseError(f"{file}: cannot be read ({error.strerror or error})") from error


def digest_ranges(file: Path, ranges: Iterable[tuple[int, int]], digest: Any, bar: Any = None) -> None:
    """Adds the bytes of a file's ranges (start, end), one after the other."""
    try:
        with file.open("rb") as opened:
            for start, end in ranges:
                for at in range(start, end, CHUNK):
                    part = os.pread(opened.fileno(), min(CHUNK, end - at), at)
                    digest.update(part)
                    if bar is not None:
                        bar.update(len(part))
    except OSError as error:
        raise ExciseError(f"{file}: cannot be read ({error.strerror or error})") from error


class _Known:
    """Digests of files that were read before, by place and state; a cache that cannot be used costs a second reading."""

    def __init__(self) -> None:
        folder = cache_folder()
        self.path, self.fresh = folder and folder / KNOWN, False
        self.entries: dict[str, str] = {}
        if self.path:
            try:
                found = json.loads(self.path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):
                found = None
            if isinstance(found, dict):
                self.entries = {str(key): value for key, value in found.items() if isinstance(value, str)}

    def digest(self, shard: Path, inside: list[Stored], bar: Any) -> str:
        """Of names, types, shapes and bytes of a file's tensors, in the order of its bytes."""
        digest = xxhash.xxh3_128()
        for tensor in inside:
            digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}".encode(errors="surrogateescape"))
        place = f"{digest.hexdigest()} {_state(shard)}"
        if place in self.entries:
            bar.update(sum(tensor.size for tensor in inside))
            return self.entries[place]
        settled = time.time() - shard.stat().st_mtime > SETTLED
        digest_ranges(shard, [(tensor.start, tensor.end) for tensor in inside], digest, bar)
        if settled:
            self.entries[place], self.fresh = digest.hexdigest(), True
        return digest.hexdigest()

    def keep(self) -> None:
        if self.path and self.fresh:
            newest = dict(list(self.entries.items())[-MOST_KNOWN:])
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(self.path) as fresh:
                    fresh.write_text(json.dumps(newest), encoding="utf-8")
            except OSError:  # the cache is optional
                pass


def _state(file: Path) -> str:
    """Changes whenever the file does: its place, and what the system says of it; the last change cannot be set back."""
    try:
        found = file.stat()
    except OSError as error:
        raise ExciseError(f"{file}: cannot be read ({error.strerror or error})") from error
    return f"{os.path.realpath(file)} {found.st_dev} {FileState.of(found)} {found.st_ctime_ns}"
