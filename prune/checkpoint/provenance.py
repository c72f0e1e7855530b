"""A pruned folder and its teacher, before anything is loaded: is it what its provenance says?"""

from collections.abc import Mapping
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
from prune.checkpoint.history import REFIT
from prune.checkpoint.slices import NewTensor, by_name, slice_layout


def promised_plan(folder: Path, layout: Layout, fingerprint: str = "", *, refitted: bool = False) -> Plan:
    """The plan that a pruned folder says it was written from.

    Args:
        layout: the unpruned model's.
        fingerprint: of the unpruned model; empty = not compared.
        refitted: whether its down projections are to be refitted ones.

    Raises:
        ExciseError: the folder has no such plan, one of another model, or was recovered since; or it was
            refitted and should not be, or the reverse.
    """
    if not folder.is_dir():
        raise ExciseError(f"finetune.checkpoint: {folder} is not a folder")
    _check_changes(folder, refitted)
    if not (folder / PLAN).is_file():
        raise ExciseError(
            f"{folder}: no {PLAN}, so it cannot be told which experts of which model it keeps; "
            "prune with Excise, or export the plan again"
        )
    plan = Plan.read(folder / PLAN)
    plan.check_model(layout.shape.layers, layout.shape.num_experts, fingerprint)
    return plan


def _check_changes(folder: Path, refitted: bool) -> None:
    """Refuse a folder whose weights were changed in another way than the recipe says."""
    changes = read_json(folder / RECOVERY) if (folder / RECOVERY).is_file() else {}
    if (folder / RECOVERY).is_file() and ("training" in changes or REFIT not in changes):
        raise ExciseError(
            f"{folder}: was recovered already ({RECOVERY} is there); "
            "recover the pruned folder it was made from"
        )
    if refitted != (REFIT in changes):
        way_out = (
            "leave `refit` out of the recipe, or prune with it"
            if refitted
            else "give the recipe the same `refit`, so that random plans get it too"
        )
        raise ExciseError(f"{folder}: was {'not ' if refitted else ''}refitted; {way_out}")


def pruned_plan(folder: Path, layout: Layout, fingerprint: str, refit: str | None = None) -> Plan:
    """The plan of a pruned folder that holds what it promises: names, shapes and every byte are compared.

    Refitted tensors are compared with what the folder's provenance says of their bytes.

    Args:
        layout: the unpruned model's.
        fingerprint: of the unpruned model.
        refit: identity of the refit that the folder is to have; None = none.

    Raises:
        ExciseError: as `promised_plan`, or a tensor is missing, added or not the source's.
    """
    plan = promised_plan(folder, layout, fingerprint, refitted=refit is not None)
    changed = _refitted_tensors(folder, refit)
    stored = open_checkpoint(folder).tensors
    pieces = by_name(slice_layout(layout, plan))
    if wrong := pieces.keys() ^ stored.keys():
        raise ExciseError(
            f"{folder}: does not hold the tensors its {PLAN} promises ({min(wrong)}); export the plan again"
        )
    for name, piece in tqdm(pieces.items(), desc="compare with the source", unit="tensor", delay=2):
        if name in changed:
            if digest_of(stored[name]) != changed[name]:
                raise ExciseError(
                    f"{folder}: {name} is not as the refit left it; was it trained or edited since?"
                )
        elif not _alike(piece, stored[name]):
            source = layout.checkpoint.folder
            raise ExciseError(f"{folder}: {name} is not that of {source}; was it trained or edited since?")
    return plan


def digest_of(stored: Stored) -> str:
    """Of the bytes of a tensor, its type and shape."""
    digest = xxhash.xxh3_128(f"{stored.dtype} {list(stored.shape)}".encode())
    digest_ranges(stored.file, [(stored.start, stored.end)], digest)
    return digest.hexdigest()


def _refitted_tensors(folder: Path, refit: str | None) -> Mapping[str, str]:
    """Tensors of a folder that a refit changed, with their digests. refit: its identity.

    Raises:
        ExciseError: the folder was refitted otherwise.
    """
    if refit is None:
        return {}
    said = read_json(folder / RECOVERY)[REFIT]
    if said.get("key") != refit:
        raise ExciseError(
            f"{folder}: was refitted on other text or with other settings than `refit` of the recipe; "
            "prune again"
        )
    changed: Mapping[str, str] = said["tensors"]
    return changed


def _alike(piece: NewTensor, stored: Stored) -> bool:
    """Whether type, shape and every byte are the same: an edit in the middle of a tensor counts too."""
    if (piece.dtype, piece.shape) != (stored.dtype, stored.shape):
        return False
    promised, found = xxhash.xxh3_128(), xxhash.xxh3_128()
    digest_ranges(piece.source.file, piece.ranges, promised)
    digest_ranges(stored.file, [(stored.start, stored.end)], found)
    return bool(promised.digest() == found.digest())


def check_teacher(teacher: Path, student: Path) -> None:
    """Refuse a teacher whose logits would mean something else.

    Raises:
        ExciseError: the two folders hold models of different architectures or vocabularies.
    """
    config, own = read_json(teacher / "config.json"), read_json(student / "config.json")
    for kind, key in (("architecture", "model_type"), ("vocabulary", "vocab_size")):
        theirs, ours = _entry(config, key), _entry(own, key)
        if theirs != ours:
            raise ExciseError(
                f"finetune.teacher.model: {teacher} has another {kind} ({key} {theirs}) "
                f"than {student} ({ours})"
            )
    if _vocabulary(teacher) != _vocabulary(student):
        raise ExciseError(
            f"finetune.teacher.model: {teacher} has another vocabulary (tokenizer.json) than {student}"
        )


def _entry(config: dict[str, Any], key: str) -> Any:
    return text_config(config).get(key, config.get(key))


def _vocabulary(folder: Path) -> Any:
    """The tokens of tokenizer.json; None without that file (transformers is asked when the text is read)."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = read_json(path, LARGEST_INDEX)
    return tokenizer.get("model", {}).get("vocab"), tokenizer.get("added_tokens")
