"""Export: stream the kept bytes of a checkpoint into a new one. Atomic, verified, no torch, memory independent of model size.

The new checkpoint grows in a hidden folder beside its place, is read back and compared, and only then moved there.
config.json gets its name last, whole and synced like everything else: a folder without it is no checkpoint to any loader.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from criteria.budget import serving_notes
from experts.disk.companions import FOLDERS, MODELING, PLAN, QUANTIZATION_FILES, RECOVERY, is_companion
from experts.disk.layout import Layout
from experts.disk.shards import FileState, Stored, read_header, read_json
from experts.disk.strict_json import broken_link
from experts.errors import ExciseError
from experts.plan import Plan
from experts.units import human
from prune.checkpoint.atomic_folder import growing, remove_abandoned, settle, sync
from prune.checkpoint.history import STEPS, steps_of
from prune.checkpoint.quantization import renumbered
from prune.checkpoint.ranges import Copy, copies, copy_all
from prune.checkpoint.run_options import option_notes
from prune.checkpoint.slices import Piece, header, patched_config, removed_bytes, slice_layout
from prune.checkpoint.source_card import read_source_card
from prune.checkpoint.unequal import modeling_source

UNNAMED = "config.json.partial"  # until everything else is there


@dataclass(frozen=True)
class Exported:
    """What was written. removed: bytes of tensors that went; size: bytes of the tensors that stayed."""

    folder: Path
    size: int
    removed: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TrainedWeights:
    """changed: tensors whose bytes stand in other files than the source's; provenance: becomes excise_recovery.json."""

    changed: Mapping[str, Stored]
    provenance: Mapping[str, Any]


def export(
    layout: Layout,
    plan: Plan,
    out: Path,
    card: str = "",
    force: bool = False,
    fingerprint: str = "",
    recovered: TrainedWeights | None = None,
) -> Exported:
    """Writes the checkpoint that keeps what `plan` keeps. `card` becomes README.md; recovered: weights that were trained since.

    Raises ExciseError and leaves nothing behind.
    """
    plan.check_model(layout.shape.layers, layout.shape.num_experts, fingerprint)
    layout.shape.check_kept(plan.kept)
    check_output(layout.checkpoint.folder, out, force)
    shards = slice_layout(layout, plan, recovered.changed if recovered else {})
    size = sum(piece.size for pieces in shards.values() for piece in pieces)
    place = Path(os.path.realpath(out))  # a link stays one
    remove_abandoned(place, "partial")
    check_space(place, size)
    try:
        others = other_files(layout.checkpoint.folder)
        before = _states(shards, others)
        with growing(place) as partial:
            _write_shards(layout, shards, partial)
            _verify_shapes(shards, partial)
            for file in others:
                _copy_other(file, partial / file.relative_to(layout.checkpoint.folder), plan)
            _write_rest(layout, plan, shards, partial, card)
            _check_unchanged(layout, before)
            if recovered:
                _write_json(partial / RECOVERY, recovered.provenance)
            _sync(partial)
            (partial / UNNAMED).rename(partial / "config.json")
            sync(partial)
            settle(partial, place, force)
    except OSError as error:
        raise ExciseError(
            f"{error.filename or out}: {error.strerror or error}; nothing was written to {out}"
        ) from error
    remove_abandoned(
        place, "replaced"
    )  # of an export with --force that was killed: only now is there something better
    return Exported(out, size, removed_bytes(layout, plan), tuple(export_notes(layout, plan)))


def export_notes(layout: Layout, plan: Plan) -> list[str]:
    """What a user should know of the checkpoint besides its size."""
    notes = []
    if not plan.uniform:
        notes.append(
            "unequal counts per layer: load with trust_remote_code=True; serving engines want equal counts (scope: layer)"
        )
    if layout.predicting:
        notes.append(f"{len(layout.predicting)} tensors of multi-token-prediction layers were dropped")
    notes += [
        *option_notes(layout.checkpoint.config, plan),
        *layout.checkpoint.notes,
        *read_source_card(layout.checkpoint.folder).notes,
    ]
    return notes + serving_notes(plan.counts.values())


def check_output(source: Path, out: Path, force: bool) -> None:
    """--force replaces checkpoints that Excise wrote, and nothing else."""
    here, there = out.resolve(), source.resolve()
    if here == there or here in there.parents:
        raise ExciseError(f"{out}: is or contains the source model; choose another output")
    if not out.exists():
        return
    if not force:
        raise ExciseError(f"{out}: exists already; choose another output or pass --force to replace it")
    if not (out / PLAN).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise ExciseError(
            f"{out}: exists and was not written by Excise (no {PLAN} in it); --force does not replace it, remove it yourself"
        )


def check_space(out: Path, size: int) -> None:
    """Raises ExciseError where a checkpoint of so many bytes does not fit on the file system of `out`."""
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free, needed = shutil.disk_usage(parent).free, size + 2**20  # tokenizer, configuration and headers too
    if free < needed:
        raise ExciseError(
            f"{parent}: {human(needed)} needed, {human(free)} free; free some or choose another output"
        )


def _write_shards(layout: Layout, shards: dict[str, list[Piece]], partial: Path) -> None:
    jobs: list[Copy] = []
    for name, pieces in shards.items():
        head = header(pieces, layout.checkpoint.metadata[name])
        with (partial / name).open("wb") as file:
            file.write(head)
            file.truncate(len(head) + sum(piece.size for piece in pieces))
        jobs.extend(copies(pieces, partial / name, len(head)))
    copy_all(jobs)


def _verify_shapes(shards: dict[str, list[Piece]], partial: Path) -> None:
    for name, pieces in shards.items():
        stored, _ = read_header(partial / name)
        wanted = {piece.name: (piece.dtype, piece.shape) for piece in pieces}
        if {key: (tensor.dtype, tensor.shape) for key, tensor in stored.items()} != wanted:
            raise ExciseError(f"{partial / name}: the written header does not hold the planned tensors")


def _write_rest(layout: Layout, plan: Plan, shards: dict[str, list[Piece]], partial: Path, card: str) -> None:
    source = layout.checkpoint
    if source.sharded:
        weights = {piece.name: name for name, pieces in shards.items() for piece in pieces}
        total = sum(piece.size for pieces in shards.values() for piece in pieces)
        _write_json(
            partial / source.entry,
            {"metadata": {"total_size": total}, "weight_map": dict(sorted(weights.items()))},
        )
    elif set(shards) != {source.entry}:
        raise ExciseError(f"{source.folder}: nothing is left of {source.entry}")
    config = patched_config(layout, plan)
    if not plan.uniform:
        (partial / MODELING).write_text(
            modeling_source(config["architectures"][0], layout.shape.num_experts), encoding="utf-8"
        )
    (partial / "README.md").write_text(
        card, encoding="utf-8", errors="replace"
    )  # a path may hold bytes that are no UTF-8
    steps = steps_of(source.folder)
    _write_json(partial / PLAN, {**plan.to_json(), **({STEPS: steps} if steps else {})})
    _write_json(partial / UNNAMED, config)


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def other_files(source: Path) -> list[Path]:
    """Tokenizer, templates, settings, code, licence: what is copied byte for byte (experts/disk/companions.py)."""
    listed = [*source.iterdir(), *(file for folder in FOLDERS for file in (source / folder).glob("*"))]
    named = [file for file in sorted(listed) if is_companion(file.relative_to(source).as_posix())]
    for file in named:
        if wrong := broken_link(file):
            raise ExciseError(f"{file}: {wrong}")
    return [file for file in named if file.is_file()]


def _copy_other(file: Path, target: Path, plan: Plan) -> None:
    """As it is; quantisation settings follow the experts' new numbers."""
    target.parent.mkdir(exist_ok=True)
    if (
        file.name in QUANTIZATION_FILES
        and (after := renumbered(before := read_json(file), plan, str(file))) != before
    ):
        _write_json(target, after)
    else:
        shutil.copyfile(file, target)


def _states(shards: dict[str, list[Piece]], others: list[Path]) -> dict[Path, FileState]:
    """Of every file that will be read; of shards since their headers were read, because the ranges come from there."""
    found = {file: FileState.of(file.stat()) for file in others}
    for piece in (piece for pieces in shards.values() for piece in pieces):
        if piece.source.file not in found:
            found[piece.source.file] = piece.source.state or FileState.of(piece.source.file.stat())
    return found


def _check_unchanged(layout: Layout, before: dict[Path, FileState]) -> None:
    config, read = layout.checkpoint.folder / "config.json", layout.checkpoint.config
    wrong = [file for file, state in before.items() if FileState.of(file.stat()) != state]
    if wrong or json.dumps(read_json(config)) != json.dumps(read):
        raise ExciseError(f"{wrong[0] if wrong else config}: changed while it was being copied; start again")


def _sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        sync(file)
    sync(folder)
