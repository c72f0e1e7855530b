"""One recovery: train adapters on a pruned model, check that nothing else moved, merge. Interrupted, it goes on at its last state."""

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState

from criteria.text.windows import Windows
from experts.anatomy import Anatomy
from experts.errors import ExciseError, is_out_of_memory, naming, one_line
from experts.files import give_usual_modes, replacing, replacing_folder
from experts.sharing import kept_counts
from finetune.adapters import NAME, Adapted, adapt, find_targets, merged, remove
from finetune.settings import Training
from finetune.teacher import Teacher
from finetune.trainer import Guard, NotFiniteError, RecoveryTrainer, WindowRows
from finetune.training_log import CURVE, TrainingLog, read_rows

ADAPTER, LAST_GOOD, STATES, KEY = "adapter", "last_good_adapter", "states", "key"
WARM_UP = 0.05  # share of the steps
MEMORY_WAYS = (
    "lower finetune.batch (and raise finetune.accumulate by the same factor), lower finetune.length or finetune.rank, set "
    "finetune.gradient_checkpointing=true, or finetune.teacher.keep=disk"
)


@dataclass(frozen=True)
class Job:
    """What one recovery works with. The model of `anatomy` stands pruned; counts: experts of every MoE layer, by the plan.

    folder: adapter, training.csv, curve.csv, states; key: identity of the training, a folder of another one is begun anew; base: what the
    adapter names as its model; rounded: see `merged`; held_out: mean validation loss of the model as it is.
    """

    anatomy: Anatomy
    counts: dict[int, int]
    windows: Windows
    batch: int
    seed: int
    settings: Training
    folder: Path
    rounded: Callable[[str, Tensor], Tensor]
    held_out: Callable[[], float]
    key: str
    base: str

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.settings.steps or max(1, len(self.windows) // (self.batch * self.settings.accumulate))

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.settings.accumulate * int(self.windows.tokens.shape[1])


@dataclass(frozen=True)
class Recovered:
    """weights: the merged tensors by name; curve: rows of curve.csv; tuned: parameters that were trained."""

    weights: dict[str, Tensor]
    curve: list[dict[str, float]]
    tuned: int


@contextmanager
def recovered(job: Job, teacher_of: Callable[[Adapted], Teacher | None]) -> Iterator[Recovered]:
    """Trains and saves the adapter; inside the block the model in memory is the merged one, after it the pruned one again.

    teacher_of: makes the teacher when the adapters are on. Raises ExciseError when memory runs out or a loss is not finite (the last good
    adapter is kept), and when a guard finds that another weight moved, or other expert counts than the plan's.
    """
    _claim(job)
    before = _sums(job.anatomy.model)
    adapted = adapt(
        job.anatomy.model, find_targets(job.anatomy, job.settings.targets), job.settings, job.seed
    )
    tuned = sum(parameter.numel() for parameter in adapted.peft.parameters() if parameter.requires_grad)
    try:
        if not is_trained(job.folder, job.key):
            with _memory_named():
                _train(job, adapted, teacher_of(adapted))
            _save(job, adapted, job.folder / ADAPTER)
        adapted.peft.load_adapter(
            job.folder / ADAPTER, NAME
        )  # also a fresh one: what is merged is what a user will load
    except BaseException:
        remove(adapted)
        raise
    with merged(adapted, job.rounded) as weights:
        _check_moved(before, _sums(job.anatomy.model), set(adapted.targets.weights))
        _check_counts(job)
        yield Recovered(weights, read_rows(job.folder / CURVE), tuned)


class UsualModes(TrainerCallback):
    """States of a training can be read by whoever may read other files here."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        give_usual_modes(Path(str(args.output_dir)))


def is_trained(folder: Path, key: str) -> bool:
    """Whether the folder holds this training, done."""
    return _is_of(folder, key) and (folder / ADAPTER).is_dir() and (folder / CURVE).is_file()


def _is_of(folder: Path, key: str) -> bool:
    mark = folder / KEY
    return mark.is_file() and mark.read_text(encoding="utf-8", errors="replace") == key


def _claim(job: Job) -> None:
    """Makes the folder; one that holds another training is begun anew."""
    if not _is_of(job.folder, job.key):
        if job.folder.exists():
            (job.folder / KEY).unlink(missing_ok=True)  # first: what is half-deleted is no training
            shutil.rmtree(job.folder)
        job.folder.mkdir(parents=True)
        with replacing(job.folder / KEY) as fresh:
            fresh.write_text(job.key, encoding="utf-8")


def _save(job: Job, adapted: Adapted, folder: Path) -> None:
    """Atomic. The adapter names the pruned checkpoint as its model."""
    config: Any = adapted.peft.peft_config[NAME]
    config.base_model_name_or_path = job.base
    config.target_modules, config.target_parameters = (
        sorted(config.target_modules),
        sorted(config.target_parameters),
    )  # sets: no order
    with replacing_folder(folder) as fresh:
        adapted.peft.save_pretrained(str(fresh), save_embedding_layers=False)
        (fresh / "README.md").unlink(missing_ok=True)  # peft's template, with nothing filled in
    shutil.rmtree(job.folder / STATES, ignore_errors=True)


def _train(job: Job, adapted: Adapted, teacher: Teacher | None) -> None:
    data = WindowRows(job.windows)
    trainer = RecoveryTrainer(
        job.settings, teacher, model=adapted.peft, args=_arguments(job), train_dataset=data
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Guard(trainer.tuned))
    trainer.add_callback(UsualModes())
    training_log = TrainingLog(job.folder, trainer, _points(job), job.tokens_per_step, job.held_out)
    trainer.add_callback(training_log)
    try:
        with _quiet_trainer(), naming(job.folder / STATES):
            trainer.train(resume_from_checkpoint=_last_state(job.folder / STATES))
    except NotFiniteError as error:
        kept = _keep_good(job, adapted, trainer)
        ways = "lower finetune.learning_rate, or use dtype float32"
        raise ExciseError(f"recovery stopped: {error}; {kept}; {ways}") from error
    finally:
        training_log.close()


def _arguments(job: Job) -> TrainingArguments:
    settings = job.settings
    device = job.anatomy.device
    arguments = TrainingArguments(
        output_dir=str(job.folder / STATES),
        max_steps=job.steps,
        per_device_train_batch_size=job.batch,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(WARM_UP * job.steps),
        max_grad_norm=1.0,
        bf16=settings.bf16,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=1,
        save_steps=settings.save_steps,
        save_total_limit=2,
        seed=job.seed,
        data_seed=job.seed,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        use_cpu=device.type == "cpu",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # Trainer would copy the model to every GPU it sees
    return arguments


def _points(job: Job) -> set[int]:
    """Steps after which the held-out loss is measured: `measure` of them, evenly spread, the last one included."""
    return {round(job.steps * (number + 1) / job.settings.measure) for number in range(job.settings.measure)}


def _last_state(folder: Path) -> str | None:
    """The newest state that was written to its end: trainer_state.json is its last file."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for state in reversed(found):
        try:
            TrainerState.load_from_json(str(state / "trainer_state.json"))
        except (OSError, json.JSONDecodeError, TypeError):
            shutil.rmtree(state)  # half-written
        else:
            return str(state)
    return None


@torch.no_grad()
def _keep_good(job: Job, adapted: Adapted, trainer: RecoveryTrainer) -> str:
    """Saves the adapter under which the loss was last finite, if it was since the start or resumption.

    Gives what was kept, in words.
    """
    if not trainer.good:
        return "it was never finite since the training began or went on, so no adapter is kept"
    for name, weight in trainer.good.items():
        trainer.tuned[name].copy_(weight)
    _save(job, adapted, job.folder / LAST_GOOD)
    return f"the last good adapter is kept in {job.folder / LAST_GOOD}"


def _sums(model: nn.Module) -> dict[str, Tensor]:
    """Checksums of every tensor, computed where it lies: the exclusive or of the bits of each of its rows."""
    tensors = {
        name: tensor.detach().reshape(-1, tensor.shape[-1] if tensor.ndim else 1)
        for name, tensor in model.state_dict().items()
    }
    return {name: torch.hash_tensor(tensor, dim=-1) for name, tensor in tensors.items() if tensor.numel()}


def _check_moved(before: dict[str, Tensor], after: dict[str, Tensor], chosen: set[str]) -> None:
    """Guard: only the chosen weights moved."""
    if before.keys() != after.keys():
        raise ExciseError(f"recovery left other tensors than it found: {min(before.keys() ^ after.keys())}")
    if moved := [
        name for name in before if name not in chosen and not torch.equal(before[name], after[name])
    ]:
        raise ExciseError(
            f"recovery moved {moved[0]}, which finetune.targets does not name; nothing was written"
        )


def _check_counts(job: Job) -> None:
    """Guard: no layer silently has all its experts again."""
    found = kept_counts(job.anatomy)
    if found != job.counts:
        raise ExciseError(
            f"after recovery the layers hold {found} experts, the plan keeps {job.counts}; nothing was written"
        )


@contextmanager
def _memory_named() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ExciseError(f"out of memory during recovery ({one_line(error)}): {MEMORY_WAYS}") from error


@contextmanager
def _quiet_trainer() -> Iterator[None]:
    """Trainer tells of token ids, of resuming and of file times what a user need not know."""
    loggers = [logging.getLogger(f"transformers.{name}") for name in ("trainer", "trainer_utils")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
