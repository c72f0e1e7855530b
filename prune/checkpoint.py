"""Export: stream the kept bytes of a checkpoint into a new one. Atomic, verified, no torch, memory independent of model size.

The new checkpoint is written to a hidden sibling folder `.OUT.<process>.partial`, read back and compared, and only then renamed.
config.json is the last file to be written: a folder without it is no checkpoint to any loader.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from tqdm import tqdm

from experts.errors import ExciseError
from experts.plan import Plan
from prune.layout import Layout
from prune.modeling_template import modeling_source
from prune.shards import INDEX, SINGLE, Stored, read_header
from prune.slices import Piece, header, patched_config, removed_bytes, slice_layout

BUFFER = 2**20  # bytes held per thread
PLAN, RECOVERY = "excise_plan.json", "excise_recovery.json"
SPAN = 64 * 2**20  # bytes copied, synced and read back at once
THREADS = 4  # more than cores: some wait for the disk
NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".index.json", ".partial")


@dataclass(frozen=True)
class Exported:
    """What was written. removed: bytes of tensors that went; size: bytes of the tensors that stayed."""

    folder: Path
    size: int
    removed: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Recovered:
    """changed: tensors whose bytes stand in other files than the source's; provenance: becomes excise_recovery.json."""

    changed: Mapping[str, Stored]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class _Copy:
    source: Path
    start: int
    length: int
    target: Path
    offset: int


def export(
    layout: Layout, plan: Plan, out: Path, card: str = "", force: bool = False, fingerprint: str = "", recovered: Recovered | None = None
) -> Exported:
    """Writes the checkpoint that keeps what `plan` keeps. `card` becomes README.md; recovered: weights that were trained since.

    Raises ExciseError and leaves nothing behind.
    """
    plan.check_model(layout.layers, layout.experts, fingerprint)
    layout.shape.check_kept(plan.kept)
    _check_output(layout.checkpoint.folder, out, force)
    shards = slice_layout(layout, plan, recovered.changed if recovered else {})
    size = sum(piece.size for pieces in shards.values() for piece in pieces)
    _remove_stale(out)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    _check_space(out, size)
    try:
        partial.mkdir(parents=True)
        _write_shards(layout, shards, partial)
        _verify_shapes(shards, partial)
        _write_rest(layout, plan, shards, partial, card)
        if recovered:
            _write_json(partial / RECOVERY, recovered.provenance)
        _sync(partial)
        _rename(partial, out)
    except OSError as error:
        raise ExciseError(f"{error.filename or out}: {error.strerror or error}; nothing was written to {out}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(out, size, removed_bytes(layout, plan), tuple(export_notes(layout, plan)))


def export_notes(layout: Layout, plan: Plan) -> list[str]:
    """What a user should know of the checkpoint besides its size."""
    notes = []
    if not plan.uniform:
        notes.append("unequal counts per layer: load with trust_remote_code=True; serving engines want equal counts (scope: layer)")
    if layout.predicting:
        notes.append(f"{len(layout.predicting)} tensors of multi-token-prediction layers were dropped")
    if layout.experts % 8 == 0 and (odd := sorted({count for count in plan.counts.values() if count % 8})):
        shown = ", ".join(map(str, odd))
        notes.append(f"{shown} experts per layer do not divide by 8, which expert-parallel serving may want (prune.multiple_of: 8)")
    return notes


def _check_output(source: Path, out: Path, force: bool) -> None:
    """--force replaces checkpoints that Excise wrote, and nothing else."""
    here, there = out.resolve(), source.resolve()
    if here == there or here in there.parents:
        raise ExciseError(f"{out}: is or contains the source model; choose another output")
    if not out.exists():
        return
    if not force:
        raise ExciseError(f"{out}: exists already; choose another output or pass --force to replace it")
    if not (out / PLAN).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise ExciseError(f"{out}: exists and was not written by Excise (no {PLAN} in it); --force does not replace it, remove it yourself")


def _remove_stale(out: Path) -> None:
    """Partial folders of exports that were killed: their process is gone."""
    for stale in out.parent.glob(f".{out.name}.*.partial"):
        pid = stale.name.split(".")[-2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(stale, ignore_errors=True)


def _check_space(out: Path, size: int) -> None:
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < size + 2**20:
        raise ExciseError(f"{parent}: {size / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free; free some or choose another output")


def _write_shards(layout: Layout, shards: dict[str, list[Piece]], partial: Path) -> None:
    sources = {piece.source.file for pieces in shards.values() for piece in pieces}
    before = {file: _state(file) for file in sources}
    spans: list[list[_Copy]] = []
    for name, pieces in shards.items():
        head = header(pieces, layout.checkpoint.metadata[name])
        with (partial / name).open("wb") as file:
            file.write(head)
            file.truncate(len(head) + sum(piece.size for piece in pieces))
        spans.extend(_spans(_jobs(pieces, partial / name, len(head))))
    total = sum(job.length for span in spans for job in span)
    with tqdm(total=total, desc="export", unit="B", unit_scale=True, delay=2) as bar, ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(_write_span, span) for span in spans]
        try:
            for future in as_completed(futures):
                bar.update(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for source, state in before.items():
        if _state(source) != state:
            raise ExciseError(f"{source}: changed while it was being copied; start again")


def _jobs(pieces: list[Piece], target: Path, offset: int) -> Iterator[_Copy]:
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
            yield _Copy(file, start, length, target, offset)
            offset += length


def _spans(jobs: Iterable[_Copy]) -> list[list[_Copy]]:
    """Neighbouring jobs from one file to one, together about SPAN bytes: what one thread copies, syncs and reads back."""
    spans: list[list[_Copy]] = []
    room = 0
    for job in jobs:
        if job.length > room or job.source != spans[-1][-1].source:
            spans.append([])
            room = SPAN
        spans[-1].append(job)
        room -= job.length
    return spans


def _write_span(span: list[_Copy]) -> int:
    """Copies, syncs to disk, reads back and compares checksums. While one thread waits for the disk another copies."""
    first, buffer = span[0], memoryview(bytearray(BUFFER))
    with first.source.open("rb", buffering=0) as source, first.target.open("r+b", buffering=0) as target:
        copied = [_copy(source.fileno(), target.fileno(), job, buffer) for job in span]
        os.fsync(target.fileno())
        for job, checksum in zip(span, copied, strict=True):
            if _read_back(target.fileno(), job, buffer) != checksum:
                raise ExciseError(f"{job.target}: bytes from {job.offset} on differ from {job.source} after writing; is the disk failing?")
    return sum(job.length for job in span)


def _copy(source: int, target: int, job: _Copy, buffer: memoryview) -> int:
    """Through a buffer that fits the processor's cache, so that the checksum costs little and every file system will do."""
    digest, done = xxhash.xxh3_64(), 0
    while done < job.length:
        count = os.preadv(source, [buffer[: job.length - done]], job.start + done)
        if count == 0:
            raise ExciseError(f"{job.source}: ended while it was being read; is the file complete?")
        digest.update(buffer[:count])
        written = 0
        while written < count:
            written += os.pwrite(target, buffer[written:count], job.offset + done + written)
        done += count
    return digest.intdigest()


def _read_back(target: int, job: _Copy, buffer: memoryview) -> int:
    digest, done = xxhash.xxh3_64(), 0
    while done < job.length:
        count = os.preadv(target, [buffer[: job.length - done]], job.offset + done)
        if count == 0:
            break
        digest.update(buffer[:count])
        done += count
    return digest.intdigest()


def _verify_shapes(shards: dict[str, list[Piece]], partial: Path) -> None:
    for name, pieces in shards.items():
        stored, _ = read_header(partial / name)
        wanted = {piece.name: (piece.dtype, piece.shape) for piece in pieces}
        if {key: (tensor.dtype, tensor.shape) for key, tensor in stored.items()} != wanted:
            raise ExciseError(f"{partial / name}: the written header does not hold the planned tensors")


def _write_rest(layout: Layout, plan: Plan, shards: dict[str, list[Piece]], partial: Path, card: str) -> None:
    source = layout.checkpoint
    for file in sorted(source.folder.iterdir()):
        if file.is_file() and not file.name.endswith(NOT_COPIED) and file.name not in ("config.json", "README.md", ".gitattributes"):
            shutil.copyfile(file, partial / file.name)
    if source.sharded:
        weights = {piece.name: name for name, pieces in shards.items() for piece in pieces}
        total = sum(piece.size for pieces in shards.values() for piece in pieces)
        _write_json(partial / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weights.items()))})
    elif set(shards) != {SINGLE}:
        raise ExciseError(f"{source.folder}: nothing is left of {SINGLE}")
    if not plan.uniform:
        architecture = (source.config.get("architectures") or [None])[0]
        if not isinstance(architecture, str) or not architecture.isidentifier():
            raise ExciseError(f"{source.folder}/config.json: no architecture named, which unequal counts per layer need; use scope layer")
        (partial / "modeling_excise.py").write_text(modeling_source(architecture, layout.count_key), encoding="utf-8")
    (partial / "README.md").write_text(card, encoding="utf-8")
    _write_json(partial / PLAN, plan.to_json())
    _write_json(partial / "config.json", patched_config(layout, plan))


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        _sync_file(file)
    _sync_file(folder)


def _rename(partial: Path, out: Path) -> None:
    """Puts the finished folder in place; with --force the old one steps aside first and goes last."""
    old = out.with_name(f".{out.name}.{os.getpid()}.replaced")
    if out.exists():
        out.rename(old)
    partial.rename(out)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(old)
    _sync_file(out.parent)
