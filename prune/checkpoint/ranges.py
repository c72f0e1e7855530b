"""Bytes from file to file, range by range: copied, synced to disk, read back and compared. Memory independent of their number of bytes."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import xxhash
from tqdm import tqdm

from experts.errors import ExciseError, naming
from prune.checkpoint.slices import Piece

BUFFER = 2**20  # bytes held per thread
SPAN = 64 * 2**20  # bytes copied, synced and read back at once
THREADS = 4  # more than cores: some wait for the disk


@dataclass(frozen=True)
class Copy:
    """file[start : start + length] of the source goes to the target's bytes from offset on."""

    source: Path
    start: int
    length: int
    target: Path
    offset: int


def copy_all(jobs: Iterable[Copy]) -> None:
    """Every range, verified; several at a time. The targets exist and have their full length."""
    spans = _by_turns(_spans(jobs))
    total = sum(job.length for span in spans for job in span)
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


def copies(pieces: list[Piece], target: Path, offset: int) -> Iterator[Copy]:
    """One copy per run of neighbouring bytes of a file, cut at SPAN: kept experts that stand side by side are copied as one."""
    runs: list[tuple[Path, list[int]]] = []
    for piece in pieces:
        for start, end in piece.ranges:
            if runs and runs[-1][0] == piece.source.file and runs[-1][1][1] == start:
                runs[-1][1][1] = end
            else:
                runs.append((piece.source.file, [start, end]))
    for file, (first, last) in runs:
        for start in range(first, last, SPAN):
            length = min(SPAN, last - start)
            yield Copy(file, start, length, target, offset)
            offset += length


def _spans(jobs: Iterable[Copy]) -> list[list[Copy]]:
    """Neighbouring jobs from one file to one, together about SPAN bytes: what one thread copies, syncs and reads back."""
    spans: list[list[Copy]] = []
    room = 0
    for job in jobs:
        if job.length > room or (job.source, job.target) != (spans[-1][-1].source, spans[-1][-1].target):
            spans.append([])
            room = SPAN
        spans[-1].append(job)
        room -= job.length
    return spans


def _by_turns(spans: list[list[Copy]]) -> list[list[Copy]]:
    """The first span of every target, then the second …: threads in one file wait for each other and sync each other's bytes."""
    by_target: dict[Path, list[list[Copy]]] = {}
    for span in spans:
        by_target.setdefault(span[0].target, []).append(span)
    return [span for turn in zip_longest(*by_target.values()) for span in turn if span]


def _write_span(span: list[Copy]) -> int:
    """Copies, syncs to disk, reads back and compares checksums. While one thread waits for the disk another copies."""
    first, buffer = span[0], memoryview(bytearray(BUFFER))
    with first.source.open("rb", buffering=0) as source, first.target.open("r+b", buffering=0) as target:
        copied = [_copy(source.fileno(), target.fileno(), job, buffer) for job in span]
        with naming(first.target):
            os.fsync(target.fileno())
        for job, checksum in zip(span, copied, strict=True):
            if _read_back(target.fileno(), job, buffer) != checksum:
                raise ExciseError(
                    f"{job.target}: bytes from {job.offset} on differ from {job.source} after writing; is the disk failing?"
                )
    return sum(job.length for job in span)


def _copy(source: int, target: int, job: Copy, buffer: memoryview) -> int:
    """Through a buffer that fits the processor's cache, so that the checksum costs little and every file system will do."""
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
    """Straight into the buffer where the system can."""
    if hasattr(os, "preadv"):
        return os.preadv(file, [buffer], start)
    found = os.pread(file, len(buffer), start)
    buffer[: len(found)] = found
    return len(found)


def _write(target: int, data: memoryview, offset: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(target, data[written:], offset + written)


def _read_back(target: int, job: Copy, buffer: memoryview) -> int:
    digest, done = xxhash.xxh3_64(), 0
    while done < job.length:
        with naming(job.target):
            count = _read(target, buffer[: job.length - done], job.offset + done)
        if count == 0:
            break
        digest.update(buffer[:count])
        done += count
    return digest.intdigest()
