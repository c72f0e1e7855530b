"""A pruned folder and its teacher, before anything is loaded: is it what its provenance says? No torch."""

from pathlib import Path
from typing import Any

import xxhash
from tqdm import tqdm

from experts.disk.companions import PLAN, RECOVERY
from experts.disk.configuration import text_config
from experts.disk.fingerprint import digest_ranges
from experts.disk.layout import Layout
from experts.disk.shards import Stored, open_checkpoint, read_json
from experts.disk.strict_json import LARGEST_INDEX
from experts.errors import ExciseError
from experts.plan import Plan
from prune.checkpoint.slices import Piece, slice_layout


def promised_plan(folder: Path, layout: Layout, fingerprint: str = "") -> Plan:
    """The plan that a pruned folder says it was written from. Raises ExciseError without one of this model."""
    if not folder.is_dir():
        raise ExciseError(f"finetune.checkpoint: {folder} is not a folder")
    if (folder / RECOVERY).is_file():
        raise ExciseError(
            f"{folder}: was recovered already ({RECOVERY} is there); recover the pruned folder it was made from"
        )
    if not (folder / PLAN).is_file():
        raise ExciseError(
            f"{folder}: no {PLAN}, so it cannot be told which experts of which model it keeps; prune with Excise, or export the plan again"
        )
    plan = Plan.read(folder / PLAN)
    plan.check_model(layout.shape.layers, layout.shape.num_experts, fingerprint)
    return plan


def pruned_plan(folder: Path, layout: Layout, fingerprint: str) -> Plan:
    """The same, of a folder that holds what it promises: names, shapes and every byte are compared."""
    plan = promised_plan(folder, layout, fingerprint)
    found = open_checkpoint(folder).tensors
    pieces = [piece for shard in slice_layout(layout, plan).values() for piece in shard]
    if wrong := {piece.name for piece in pieces} ^ found.keys():
        raise ExciseError(
            f"{folder}: does not hold the tensors its {PLAN} promises ({min(wrong)}); export the plan again"
        )
    for piece in tqdm(pieces, desc="compare with the source", unit="tensor", delay=2):
        if not _alike(piece, found[piece.name]):
            raise ExciseError(
                f"{folder}: {piece.name} is not that of {layout.checkpoint.folder}; was it trained or edited since?"
            )
    return plan


def _alike(piece: Piece, stored: Stored) -> bool:
    """Whether every byte is the same: an edit in the middle of a tensor is one too."""
    if (piece.dtype, piece.shape) != (stored.dtype, stored.shape):
        return False
    one, other = xxhash.xxh3_128(), xxhash.xxh3_128()
    digest_ranges(piece.source.file, piece.ranges, one)
    digest_ranges(stored.file, [(stored.start, stored.end)], other)
    return bool(one.digest() == other.digest())


def check_teacher(teacher: Path, student: Path) -> None:
    """Refuses a teacher whose logits would mean something else: another architecture, another vocabulary."""
    one, other = (read_json(folder / "config.json") for folder in (teacher, student))
    for what, key in (("architecture", "model_type"), ("vocabulary", "vocab_size")):
        values = [_entry(config, key) for config in (one, other)]
        if values[0] != values[1]:
            raise ExciseError(
                f"finetune.teacher.model: {teacher} has another {what} ({key} {values[0]}) than {student} ({values[1]})"
            )
    words = [_vocabulary(folder) for folder in (teacher, student)]
    if words[0] != words[1]:
        raise ExciseError(
            f"finetune.teacher.model: {teacher} has another vocabulary (tokenizer.json) than {student}"
        )


def _entry(config: dict[str, Any], key: str) -> Any:
    return text_config(config).get(key, config.get(key))


def _vocabulary(folder: Path) -> Any:
    """What tokenizer.json says of the tokens; None where there is no such file (transformers is asked when the text is read)."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = read_json(path, LARGEST_INDEX)
    return tokenizer.get("model", {}).get("vocab"), tokenizer.get("added_tokens")
