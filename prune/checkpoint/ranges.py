"""Bytes from file to file, range by range: copied, synced to disk, read back and compared.

The memory this takes does not depend on the number of bytes.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import xxhash
from tqdm import tqdm

from experts.errors import ExciseError, naming
from prune.checkpoint.slices import NewTensor

BUFFER = 2**20  # bytes held per thread
SPAN = 64 * 2**20  # bytes copied, synced and read back at once
THREADS = 4  # more than cores: some wait for the disk


@dataclass(frozen=True)
class Copy:
    """A run of bytes to be copied.

    Attributes:
        source: file it is read from.
        start: first byte there.
        length: bytes.
        target: file it is written to.
        offset: first byte there.
    """

    source: Path
    start: int
    length: int
    target: Path
    offset: int


Span = list[Copy]  # neighbours from one file to one: what one thread copies, syncs and reads back


def copy_all(jobs: Iterable[Copy]) -> None:
    """Copy every range, several at a time. The targets exist and have their full length.

    Raises:
        ExciseError: bytes read back differ from those written, or a source is shorter than it was.
        OSError: a file cannot be read, written or synced; it names that file.
    """
    spans = _by_turns(_spans(jobs))
    total = sum(_bytes(span) for span in spans)
    with (
        tqdm(total=total, desc="export", unit="B", unit_scale=True, delay=2) as bar,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        futures = [pool.submit(_write_span, span) for span in spans]
        try:
            for future in as_completed(futures):
                bar.update(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def copies(pieces: list[NewTensor], target: Path, offset: int) -> Iterator[Copy]:
    """The copies that write pieces one after the other into a file, from `offset` on.

    One per run of neighbouring bytes, cut at SPAN: kept experts that are side by side are copied as one.
    """
    for file, first, last in _runs(pieces):
        for start in range(first, last, SPAN):
            length = min(SPAN, last - start)
            yield Copy(file, start, length, target, offset)
            offset += length


def _runs(pieces: list[NewTensor]) -> list[tuple[Path, int, int]]:
    """(file, start, end) of the pieces' bytes, ranges that touch each other joined."""
    runs: list[tuple[Path, int, int]] = []
    for piece in pieces:
        file = piece.source.file
        for start, end in piece.ranges:
            if runs and (runs[-1][0], runs[-1][2]) == (file, start):
                start = runs.pop()[1]
            runs.append((file, start, end))
    return runs


def _spans(jobs: Iterable[Copy]) -> list[Span]:
    """Neighbouring jobs from one file to one, together about SPAN bytes."""
    spans: list[Span] = []
    room = 0
    for job in jobs:
        if job.length > room or not _same_files(job, spans[-1][-1]):
            spans.append([])
            room = SPAN
        spans[-1].append(job)
        room -= job.length
    return spans


def _same_files(job: Copy, before: Copy) -> bool:
    return (job.source, job.target) == (before.source, before.target)


def _by_turns(spans: list[Span]) -> list[Span]:
    """The first span of every target, then the second …

    Threads in one file would wait for each other and sync each other's bytes.
    """
    by_target: dict[Path, list[Span]] = {}
    for span in spans:
        by_target.setdefault(span[0].target, []).append(span)
    ordered: list[Span] = []
    for turn in zip_longest(*by_target.values()):
        ordered.extend(span for span in turn if span)
    return ordered


def _write_span(span: Span) -> int:
    """Copy a span, sync it, read it back, compare checksums. Returns its bytes.

    While one thread waits for the disk another one copies.
    """
    first, buffer = span[0], memoryview(bytearray(BUFFER))
    with first.source.open("rb", buffering=0) as source, first.target.open("r+b", buffering=0) as target:
        checksums = [_copy(source.fileno(), target.fileno(), job, buffer) for job in span]
        with naming(first.target):
            os.fsync(target.fileno())
        for job, checksum in zip(span, checksums, strict=True):
            if _read_back(target.fileno(), job, buffer) != checksum:
                raise ExciseError(
                    f"{job.target}: bytes from {job.offset} on differ from {job.source} after writing; "
                    "is the disk failing?"
                )
    return _bytes(span)


def _bytes(span: Span) -> int:
    return sum(job.length for job in span)


def _copy(source: int, target: int, job: Copy, buffer: memoryview) -> int:
    """Copy one range between open files; returns its checksum.

    The buffer fits the processor's cache, so the checksum costs little, and every file system will do.
    """
    digest, done = xxhash.xxh3_64(), 0
    while done < job.length:
        with naming(job.source):
            count = _read(source, buffer[: job.length - done], job.start + done)
        if count == 0:
            raise ExciseError(f"{job.source}: ended while it was being read; is the file complete?")
        digest.update(buffer[:count])
        with naming(job.target):
            _write(target, buffer[:count], job.offset + done)
        done += count
    return digest.intdigest()


def _read(file: int, buffer: memoryview, start: int) -> int:
    """Read into the buffer, without a copy where the system can; returns the bytes read."""
    if hasattr(os, "preadv"):
        return os.preadv(file, [buffer], start)
    data = os.pread(file, len(buffer), start)
    buffer[: len(data)] = data
    return len(data)


def _write(target: int, data: memoryview, offset: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(target, data[written:], offset + written)


def _read_back(target: int, job: Copy, buffer: memoryview) -> int:
    """The checksum of what is in the target now."""
    digest, done = xxhash.xxh3_64(), 0
    while done < job.length:
        with naming(job.target):
            count = _read(target, buffer[: job.length - done], job.offset + done)
        if count == 0:
            break
        digest.update(buffer[:count])
        done += count
    return digest.intdigest()
