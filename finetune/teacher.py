"""The unpruned teacher: the same weights without their restriction, or its likeliest tokens on disk."""

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from criteria.text.windows import Windows
from experts.errors import ExciseError, naming
from experts.files import replacing
from experts.memory import in_chunks
from experts.sharing import SharedWeights
from finetune.losses import TeacherLogits, log_softened, top_tokens

READY, IDS, LOGS = "teacher.json", "ids.npy", "logs.npy"
BYTES = 8  # of a cached token: its id and its log probability


class Teacher(ABC):
    """Knows what the student's distribution should be."""

    @abstractmethod
    def targets(self, rows: Tensor, tokens: Tensor) -> TeacherLogits:
        """Return the teacher's distribution on training windows.

        Args:
            rows: numbers of the windows [N]
            tokens: the windows [N, W]
        """


class SharedTeacher(Teacher):
    """The unpruned model in the same memory as the pruned one."""

    def __init__(
        self,
        weights: SharedWeights,
        temperature: float,
        without_adapters: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Teach from shared weights.

        Args:
            weights: of both models
            temperature: τ
            without_adapters: makes a context in which the student's adapters are switched off
        """
        self.weights, self.temperature, self.without_adapters = weights, temperature, without_adapters

    @torch.no_grad()
    def targets(self, rows: Tensor, tokens: Tensor) -> TeacherLogits:  # noqa: ARG002 - rows: CachedTeacher's
        with self.without_adapters(), self.weights.as_teacher():
            logits = self.weights.anatomy.model(input_ids=tokens, use_cache=False).logits
        return TeacherLogits(log_softened(logits[:, :-1], self.temperature))


class CachedTeacher(Teacher):
    """The K likeliest tokens of every position, read from the folder that `cache_teacher` filled."""

    def __init__(self, folder: Path) -> None:
        self.ids = np.load(folder / IDS, mmap_mode="r")
        self.logs = np.load(folder / LOGS, mmap_mode="r")

    def targets(self, rows: Tensor, tokens: Tensor) -> TeacherLogits:
        numbers = rows.cpu().numpy()
        ids = torch.from_numpy(np.array(self.ids[numbers])).to(tokens.device)
        logs = torch.from_numpy(np.array(self.logs[numbers])).to(tokens.device)
        return TeacherLogits(logs, ids.long())


def is_cached(folder: Path, key: str) -> bool:
    """Return whether the folder holds all targets of this key (teacher, text, temperature, K)."""
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
    """Run the teacher once over the training text, and keep its likeliest tokens.

    Writes ids [N, W − 1, K] int32 and log probabilities [N, W − 1, K] float32 as .npy files. The mark that
    they are complete is written last: an interrupted pass is begun again.

    Args:
        model: the teacher
        windows: training text, N windows of W tokens
        temperature: τ
        top_k: K
        batch: windows per forward
        folder: where the files go
        key: identity of teacher, text, temperature and K

    Raises:
        ExciseError: the disk has too little room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / READY).unlink(missing_ok=True)
    count, length = windows.tokens.shape
    ids, logs = _files(folder, (count, length - 1, min(top_k, _vocabulary(model))))
    with tqdm(total=count, desc="teacher", unit="window", delay=2) as bar:

        def keep(start: int, stop: int) -> None:
            tokens = windows.select(np.arange(start, stop)).tensor(model.device)
            ids[start:stop], logs[start:stop] = _likeliest(model, tokens, temperature, top_k)
            bar.update(stop - start)

        in_chunks(count, batch, keep, "window")
    ids.flush()
    logs.flush()
    with replacing(folder / READY) as fresh:
        fresh.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")


def _likeliest(
    model: PreTrainedModel, tokens: Tensor, temperature: float, top_k: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Ids and log probabilities [B, W − 1, K] of the likeliest tokens after each of [B, W]."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    likeliest = top_tokens(logits, temperature, top_k)
    assert likeliest.ids is not None, "of some tokens, not of the whole vocabulary"
    return likeliest.ids.int().cpu().numpy(), likeliest.logs.float().cpu().numpy()


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _files(
    folder: Path, shape: tuple[int, int, int]
) -> (
    "tuple[np.memmap[tuple[int, ...], np.dtype[np.int32]], np.memmap[tuple[int, ...], np.dtype[np.float32]]]"
):
    """Files for ids and log probabilities, whole from the start."""
    _check_space(folder, BYTES * int(np.prod(shape)))
    with naming(folder):
        ids = np.lib.format.open_memmap(folder / IDS, "w+", np.int32, shape)
        logs = np.lib.format.open_memmap(folder / LOGS, "w+", np.float32, shape)
        for name in (IDS, LOGS):
            _reserve(folder / name)
    return ids, logs


def _reserve(path: Path) -> None:
    """Reserve the whole file: a disk that fills later would kill the process that writes to it as memory."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        has = f"the teacher's logits take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        raise ExciseError(f"{folder}: {has}; lower finetune.teacher.top_k or finetune.sequences")
