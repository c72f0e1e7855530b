"""One recovery: train adapters on a pruned model, check that nothing else moved, merge.

An interrupted training goes on at its last state.
"""

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
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState

from criteria.text.windows import Windows
from experts.anatomy import Anatomy
from experts.errors import ExciseError, is_out_of_memory, naming, one_line
from experts.files import give_usual_modes, replacing, replacing_folder
from finetune.adapters import NAME, Adapted, adapt, merged, remove
from finetune.guards import check_counts, check_moved, checksums
from finetune.results import CurvePoint
from finetune.settings import Training
from finetune.targets import find_targets
from finetune.teacher import Teacher
from finetune.trainer import Guard, NotFiniteError, RecoveryTrainer, TrainingWindows
from finetune.training_log import CURVE, TrainingLog, read_curve

ADAPTER, LAST_GOOD, STATES, KEY = "adapter", "last_good_adapter", "states", "key"
WARM_UP = 0.05  # share of the steps
MEMORY_WAYS = (
    "lower finetune.batch (and raise finetune.accumulate by the same factor), lower finetune.length or "
    "finetune.rank, set finetune.gradient_checkpointing=true, or finetune.teacher.keep=disk"
)
LEARNING_WAYS = "lower finetune.learning_rate, or use dtype float32"


@dataclass(frozen=True)
class Job:
    """What one recovery works with.

    Attributes:
        anatomy: the pruned model
        counts: decoder layer -> experts that the plan keeps
        windows: training text
        batch: windows per forward
        seed: of the adapters and of the order of windows
        settings: of the training
        folder: where adapter, training.csv, curve.csv and states go
        rounded: returns a merged weight in the precision it is stored in (see `merged`)
        held_out: measures the mean validation loss of the model as it is, nats per token
        key: identity of the training; a folder of another one is begun anew
        base: what the adapter names as its model
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
        """Training tokens of an optimiser step."""
        return self.batch * self.settings.accumulate * int(self.windows.tokens.shape[1])


@dataclass(frozen=True)
class Recovered:
    """What a training made.

    Attributes:
        weights: the merged tensors by name
        curve: rows of curve.csv
        tuned: number of parameters that were trained
    """

    weights: dict[str, Tensor]
    curve: list[CurvePoint]
    tuned: int


@contextmanager
def recovered(job: Job, teacher_of: Callable[[Adapted], Teacher | None]) -> Iterator[Recovered]:
    """Train a pruned model; inside the block it is the merged one, after it the pruned one again.

    The adapter is saved. What is trained already is not trained again.

    Args:
        job: the training
        teacher_of: makes the teacher, once the adapters are on

    Raises:
        ExciseError: memory runs out, a loss is not finite (the last good adapter is kept), another weight
            moved, or the layers hold other numbers of experts than the plan.
    """
    _claim(job)
    before = checksums(job.anatomy.model)
    targets = find_targets(job.anatomy, job.settings.targets)
    adapted = adapt(job.anatomy.model, targets, job.settings, job.seed)
    tuned = sum(parameter.numel() for parameter in adapted.peft.parameters() if parameter.requires_grad)
    try:
        if not is_trained(job.folder, job.key):
            with _memory_named():
                _train(job, adapted, teacher_of(adapted))
            _save(job, adapted, job.folder / ADAPTER)
        # Also a fresh one: what is merged is what a user will load.
        adapted.peft.load_adapter(job.folder / ADAPTER, NAME)
    except BaseException:
        remove(adapted)
        raise
    with merged(adapted, job.rounded) as weights:
        check_moved(before, checksums(job.anatomy.model), set(targets.weights))
        check_counts(job.anatomy, job.counts)
        yield Recovered(weights, read_curve(job.folder / CURVE), tuned)


def is_trained(folder: Path, key: str) -> bool:
    """Return whether the folder holds this training, finished."""
    return _is_of(folder, key) and (folder / ADAPTER).is_dir() and (folder / CURVE).is_file()


def _is_of(folder: Path, key: str) -> bool:
    mark = folder / KEY
    return mark.is_file() and mark.read_text(encoding="utf-8", errors="replace") == key


def _claim(job: Job) -> None:
    """Make the folder; one that holds another training is begun anew."""
    if _is_of(job.folder, job.key):
        return
    if job.folder.exists():
        (job.folder / KEY).unlink(missing_ok=True)  # first: what is half-deleted is no training
        shutil.rmtree(job.folder)
    job.folder.mkdir(parents=True)
    with replacing(job.folder / KEY) as fresh:
        fresh.write_text(job.key, encoding="utf-8")


def _save(job: Job, adapted: Adapted, folder: Path) -> None:
    """Save the adapter, whole or not at all, with the pruned checkpoint as its model. States then go."""
    config: Any = adapted.peft.peft_config[NAME]
    config.base_model_name_or_path = job.base
    # Sets have no order, and files should not differ from run to run.
    config.target_modules = sorted(config.target_modules)
    config.target_parameters = sorted(config.target_parameters)
    with replacing_folder(folder) as fresh:
        adapted.peft.save_pretrained(str(fresh), save_embedding_layers=False)
        (fresh / "README.md").unlink(missing_ok=True)  # peft's template, with nothing filled in
    shutil.rmtree(job.folder / STATES, ignore_errors=True)


def _train(job: Job, adapted: Adapted, teacher: Teacher | None) -> None:
    data = TrainingWindows(job.windows)
    trainer = RecoveryTrainer(
        job.settings, teacher, model=adapted.peft, args=_arguments(job), train_dataset=data
    )
    training_log = TrainingLog(job.folder, trainer, _points(job), job.tokens_per_step, job.held_out)
    trainer.remove_callback(PrinterCallback)
    for callback in (Guard(trainer.tuned), UsualModes(), training_log):
        trainer.add_callback(callback)
    try:
        with _quiet_trainer(), naming(job.folder / STATES):
            trainer.train(resume_from_checkpoint=_last_state(job.folder / STATES))
    except NotFiniteError as error:
        what_is_kept = _keep_good(job, adapted, trainer)
        raise ExciseError(f"recovery stopped: {error}; {what_is_kept}; {LEARNING_WAYS}") from error
    finally:
        training_log.close()


class UsualModes(TrainerCallback):
    """Lets whoever may read other files here read the states of a training too."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        give_usual_modes(Path(str(args.output_dir)))


def _arguments(job: Job) -> TrainingArguments:
    settings = job.settings
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
        use_cpu=job.anatomy.device.type == "cpu",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # Trainer would copy the model to every GPU it sees
    return arguments


def _points(job: Job) -> set[int]:
    """Steps after which the held-out loss is measured: `measure` of them, evenly, the last included."""
    count = job.settings.measure
    return {round(job.steps * number / count) for number in range(1, count + 1)}


def _last_state(folder: Path) -> str | None:
    """The newest state that was written to its end: trainer_state.json is its last file."""
    states = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for state in reversed(states):
        try:
            TrainerState.load_from_json(str(state / "trainer_state.json"))
        except (OSError, json.JSONDecodeError, TypeError):
            shutil.rmtree(state)  # half-written
        else:
            return str(state)
    return None


@torch.no_grad()
def _keep_good(job: Job, adapted: Adapted, trainer: RecoveryTrainer) -> str:
    """Save the adapter under which the loss was last finite, if it was since the start or resumption.

    Returns:
        What was kept, in words.
    """
    if not trainer.good:
        return "it was never finite since the training began or went on, so no adapter is kept"
    for name, weight in trainer.good.items():
        trainer.tuned[name].copy_(weight)
    _save(job, adapted, job.folder / LAST_GOOD)
    return f"the last good adapter is kept in {job.folder / LAST_GOOD}"


@contextmanager
def _memory_named() -> Iterator[None]:
    """Say which settings need less memory where it runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ExciseError(f"out of memory during recovery ({one_line(error)}): {MEMORY_WAYS}") from error


@contextmanager
def _quiet_trainer() -> Iterator[None]:
    """Silence Trainer's messages about token ids, resuming and file times."""
    loggers = [logging.getLogger(f"transformers.{name}") for name in ("trainer", "trainer_utils")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
