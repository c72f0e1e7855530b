"""The source's files: which are copied beside the shards, and whether one changes while it is read."""

import json
import shutil
from pathlib import Path

from experts.disk.companions import FOLDERS, QUANTIZATION_FILES, is_companion
from experts.disk.layout import Layout
from experts.disk.shards import FileState, read_json
from experts.disk.strict_json import broken_link
from experts.errors import ExciseError
from experts.plan import Plan
from prune.checkpoint.json_files import write_checkpoint_json
from prune.checkpoint.quantization import renumber
from prune.checkpoint.slices import Shards, by_name


def other_files(source: Path) -> list[Path]:
    """Files of a model's folder that an export copies: tokenizer, templates, settings, code, licence.

    Raises:
        ExciseError: one of them is a broken link.
    """
    candidates = list(source.iterdir())
    for folder in FOLDERS:
        candidates.extend((source / folder).glob("*"))
    companions = [file for file in sorted(candidates) if is_companion(file.relative_to(source).as_posix())]
    for file in companions:
        if wrong := broken_link(file):
            raise ExciseError(f"{file}: {wrong}")
    return [file for file in companions if file.is_file()]


def copy_other(file: Path, target: Path, plan: Plan) -> None:
    """Copy a file byte for byte; quantisation settings follow the experts' new numbers."""
    target.parent.mkdir(exist_ok=True)
    if file.name in QUANTIZATION_FILES:
        before = read_json(file)
        after = renumber(before, plan, str(file))
        if after != before:
            write_checkpoint_json(target, after)
            return
    shutil.copyfile(file, target)


def states_of(shards: Shards, others: list[Path]) -> dict[Path, FileState]:
    """The state of every file that an export reads, for `check_unchanged` when it has read them.

    Shards are held to the state they had when their headers were read: the byte ranges come from there.
    """
    states = {file: FileState.of(file.stat()) for file in others}
    for piece in by_name(shards).values():
        file = piece.source.file
        if file not in states:
            states[file] = piece.source.state or FileState.of(file.stat())
    return states


def check_unchanged(layout: Layout, states: dict[Path, FileState]) -> None:
    """Refuse an export whose source changed meanwhile.

    Raises:
        ExciseError: a file differs from its state before, or config.json from what was read of it.
    """
    changed = [file for file, state in states.items() if FileState.of(file.stat()) != state]
    config = layout.checkpoint.folder / "config.json"
    if not changed and json.dumps(read_json(config)) != json.dumps(layout.checkpoint.config):
        changed = [config]
    if changed:
        raise ExciseError(f"{changed[0]}: changed while it was being copied; start again")
