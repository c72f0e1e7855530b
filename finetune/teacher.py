"""The unpruned teacher: the same weights without their restriction, or its best logits on disk."""

import json
import os
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from criteria.text.windows import Windows
from experts.errors import ExciseError, naming
from experts.files import replacing
from experts.memory import in_chunks
from experts.sharing import SharedWeights
from finetune.losses import TeacherLogits, best, log_softened

READY = "teacher.json"


class Teacher(ABC):
    """Gives the targets of training windows. rows: their numbers [N], tokens: [N, W]."""

    @abstractmethod
    def targets(self, rows: Tensor, tokens: Tensor) -> TeacherLogits: ...


class SharedTeacher(Teacher):
    """The twin of the pruned model. without_adapters: a context in which the adapters are switched off."""

    def __init__(self, twin: SharedWeights, temperature: float, without_adapters: Any) -> None:
        self.twin, self.temperature, self.without_adapters = twin, temperature, without_adapters

    @torch.no_grad()
    def targets(self, rows: Tensor, tokens: Tensor) -> TeacherLogits:  # noqa: ARG002 - the other teacher looks them up
        off: AbstractContextManager[None] = self.without_adapters()
        with off, self.twin.as_teacher():
            logits = self.twin.anatomy.model(input_ids=tokens, use_cache=False).logits
        return TeacherLogits(log_softened(logits[:, :-1], self.temperature))


class CachedTeacher(Teacher):
    """The K best tokens of every position, read from the folder that `cache_teacher` filled."""

    def __init__(self, folder: Path) -> None:
        self.ids, self.logs = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "logs"))

    def targets(self, rows: Tensor, tokens: Tensor) -> TeacherLogits:
        chosen = rows.cpu().numpy()
        ids, logs = (
            torch.from_numpy(np.array(array[chosen])).to(tokens.device) for array in (self.ids, self.logs)
        )
        return TeacherLogits(logs, ids.long())


def is_cached(folder: Path, key: str) -> bool:
    """Whether the folder holds all targets of this key (teacher, text, temperature, K)."""
    try:
        return bool(json.loads((folder / READY).read_text(encoding="utf-8"))["key"] == key)
    except (OSError, ValueError, KeyError, TypeError):
        return False


@torch.no_grad()
def cache_teacher(
    model: PreTrainedModel,
    windows: Windows,
    temperature: float,
    top_k: int,
    batch: int,
    folder: Path,
    key: str,
) -> None:
    """One pass of the teacher over the training text: ids [N, W − 1, K] int32 and log probabilities float32, as .npy files.

    READY is written last: an interrupted pass is begun again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / READY).unlink(missing_ok=True)
    device = next(model.parameters()).device
    count, length = windows.tokens.shape
    shape = (count, length - 1, min(top_k, int(model.config.get_text_config().vocab_size)))
    _check_space(folder, 8 * int(np.prod(shape)))
    with naming(folder):
        ids = np.lib.format.open_memmap(folder / "ids.npy", "w+", np.int32, shape)
        logs = np.lib.format.open_memmap(folder / "logs.npy", "w+", np.float32, shape)
        for name in ("ids.npy", "logs.npy"):
            _reserve(folder / name)
    with tqdm(total=count, desc="teacher", unit="window", delay=2) as bar:

        def work(start: int, stop: int) -> None:
            tokens = torch.from_numpy(windows.tokens[start:stop]).to(device)
            found = best(model(input_ids=tokens, use_cache=False).logits[:, :-1], temperature, top_k)
            assert found.ids is not None
            ids[start:stop], logs[start:stop] = (
                found.ids.int().cpu().numpy(),
                found.logs.float().cpu().numpy(),
            )
            bar.update(stop - start)

        in_chunks(count, batch, work, "window")
    ids.flush()
    logs.flush()
    with replacing(folder / READY) as fresh:
        fresh.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")


def _reserve(path: Path) -> None:
    """Blocks for the whole file: a disk that fills later would kill the process that writes to it as memory."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _check_space(folder: Path, needed: int) -> None:
    import shutil

    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExciseError(
            f"{folder}: the teacher's logits take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; lower finetune.teacher.top_k or "
            "finetune.sequences"
        )
