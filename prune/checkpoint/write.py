"""Export: stream the kept bytes of a checkpoint into a new one. Atomic, verified, in constant memory.

The new checkpoint grows in a hidden folder beside its place, is read back and compared, and only then moved
there. config.json gets its name last, whole and synced like everything else: a folder without it is no
checkpoint to any loader.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from criteria.budget import serving_notes
from experts.disk.companions import MODELING, PLAN, RECOVERY
from experts.disk.layout import Layout
from experts.disk.shards import Stored
from experts.errors import ExciseError
from experts.plan import Plan
from prune.checkpoint.atomic_folder import growing, remove_abandoned, settle, sync
from prune.checkpoint.config import patched_config
from prune.checkpoint.history import STEPS, steps_of
from prune.checkpoint.json_files import write_checkpoint_json
from prune.checkpoint.output import check_output, check_space
from prune.checkpoint.run_options import option_notes
from prune.checkpoint.shard_files import verify_shapes, write_shards
from prune.checkpoint.slices import UNCHANGED, Shards, by_name, removed_bytes, slice_layout, total_size
from prune.checkpoint.source_card import read_source_card
from prune.checkpoint.source_files import check_unchanged, copy_other, other_files, states_of
from prune.checkpoint.unequal import modeling_source

UNNAMED = "config.json.partial"  # the name of config.json until everything else is there


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: the new checkpoint.
        size: bytes of its tensors.
        removed: bytes of the source's tensors that are not in it.
        notes: what a user should know of it.
    """

    folder: Path
    size: int
    removed: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TrainedWeights:
    """Weights that were trained or refitted since the plan was made.

    Attributes:
        changed: stored tensors by their names in the new checkpoint; their bytes are in files of their own.
        provenance: how they came about; becomes excise_recovery.json.
        words: the same in a sentence, for the card of a plan.
        dequantised: experts that the source stores quantised are among `changed`, in bfloat16.
    """

    changed: Mapping[str, Stored]
    provenance: Mapping[str, Any]
    words: str = "Weights were changed since, as `excise_recovery.json` says."
    dequantised: bool = False


@dataclass(frozen=True)
class _Contents:
    """Everything that a new checkpoint is made of.

    Attributes:
        provenance: of training; None = no weight was changed.
        dequantised: as in `TrainedWeights`.
    """

    layout: Layout
    plan: Plan
    shards: Shards
    card: str
    provenance: Mapping[str, Any] | None
    dequantised: bool


def export(
    layout: Layout,
    plan: Plan,
    out: Path,
    card: str = "",
    force: bool = False,
    fingerprint: str = "",
    recovered: TrainedWeights | None = None,
) -> Exported:
    """Write the checkpoint that keeps what a plan keeps.

    Args:
        layout: the source.
        out: folder of the new checkpoint; a link is followed.
        card: text of README.md.
        force: replace a checkpoint of Excise that is already there.
        fingerprint: of the source, held against the plan's; empty = not compared.
        recovered: weights that were trained since.

    Raises:
        ExciseError: nothing was written, and nothing is left behind.
    """
    plan.check_model(layout.shape.layers, layout.shape.num_experts, fingerprint)
    layout.shape.check_kept(plan.kept)
    check_output(layout.checkpoint.folder, out, force)
    dequantised = recovered is not None and recovered.dequantised
    changed = recovered.changed if recovered else UNCHANGED
    shards = slice_layout(layout, plan, changed, dequantise=dequantised)
    _check_bytes(shards)
    provenance = recovered.provenance if recovered else None
    contents = _Contents(layout, plan, shards, card, provenance, dequantised)
    place = Path(os.path.realpath(out))  # a link stays one
    remove_abandoned(place, "partial")
    check_space(place, total_size(shards))
    try:
        _write(contents, place, force)
    except OSError as error:
        where = error.filename or out
        why = error.strerror or error
        raise ExciseError(f"{where}: {why}; nothing was written to {out}") from error
    # Left by an export with --force that was killed: only now is there something better.
    remove_abandoned(place, "replaced")
    return Exported(out, total_size(shards), removed_bytes(layout, plan), tuple(export_notes(layout, plan)))


def _check_bytes(shards: Shards) -> None:
    """Every tensor that is written in another form than the source's has bytes of its own."""
    for piece in by_name(shards).values():
        if piece.dtype != piece.source.dtype:
            raise ExciseError(
                f"{piece.source.file}: {piece.name} was not dequantised, so it cannot be written"
            )


def export_notes(layout: Layout, plan: Plan) -> list[str]:
    """What a user should know of an exported checkpoint besides its size, a line each."""
    notes = []
    if not plan.uniform:
        notes.append(
            "unequal counts per layer: load with trust_remote_code=True; "
            "serving engines want equal counts (scope: layer)"
        )
    if layout.predicting:
        notes.append(f"{len(layout.predicting)} tensors of multi-token-prediction layers were dropped")
    return [
        *notes,
        *option_notes(layout.checkpoint.config, plan),
        *layout.checkpoint.notes,
        *read_source_card(layout.checkpoint.folder).notes,
        *serving_notes(plan.counts.values()),
    ]


def _write(contents: _Contents, place: Path, force: bool) -> None:
    """Fill a hidden folder, check it, name its configuration, and move it to its place."""
    source = contents.layout.checkpoint
    others = other_files(source.folder)
    states = states_of(contents.shards, others)
    with growing(place) as partial:
        write_shards(contents.shards, source.metadata, partial)
        verify_shapes(contents.shards, partial)
        for file in others:
            copy_other(file, partial / file.relative_to(source.folder), contents.plan)
        _write_new_files(contents, partial)
        check_unchanged(contents.layout, states)
        _sync_all(partial)
        (partial / UNNAMED).rename(partial / "config.json")
        sync(partial)
        settle(partial, place, force)


def _write_new_files(contents: _Contents, partial: Path) -> None:
    """Index, modelling code, model card, provenance and configuration."""
    layout, plan = contents.layout, contents.plan
    _write_index(contents, partial)
    config = patched_config(layout, plan, dequantise=contents.dequantised)
    if not plan.uniform:
        source = modeling_source(config["architectures"][0], layout.shape.num_experts)
        (partial / MODELING).write_text(source, encoding="utf-8")
    # The card may name a path, and a path may hold bytes that are no UTF-8.
    (partial / "README.md").write_text(contents.card, encoding="utf-8", errors="replace")
    steps = steps_of(layout.checkpoint.folder)
    write_checkpoint_json(partial / PLAN, plan.to_json() | ({STEPS: steps} if steps else {}))
    write_checkpoint_json(partial / UNNAMED, config)
    if contents.provenance is not None:
        write_checkpoint_json(partial / RECOVERY, contents.provenance)


def _write_index(contents: _Contents, partial: Path) -> None:
    """The index of a sharded checkpoint: shard of every tensor, and their size together."""
    source, shards = contents.layout.checkpoint, contents.shards
    if source.sharded:
        weights: dict[str, str] = {}
        for shard, pieces in shards.items():
            weights |= {piece.name: shard for piece in pieces}
        index = {
            "metadata": {"total_size": total_size(shards)},
            "weight_map": dict(sorted(weights.items())),
        }
        write_checkpoint_json(partial / source.entry, index)
    elif set(shards) != {source.entry}:
        raise ExciseError(f"{source.folder}: nothing is left of {source.entry}")


def _sync_all(folder: Path) -> None:
    """Bring the files of a new checkpoint and its entries to disk."""
    for file in folder.rglob("*"):
        sync(file)
    sync(folder)
