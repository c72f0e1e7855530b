"""Recovery of a pruned model, as users call it: LoRA on the kept experts, the whole model as teacher."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel

from criteria.text.disjoint import check_unseen
from criteria.text.windows import Windows, check_held_out, check_windows
from experts.anatomy import Anatomy
from experts.arguments import check_count
from experts.errors import ExciseError
from experts.keys import key_of
from experts.model import Model, check_plan
from experts.plan import Plan
from experts.settings import first_problem
from finetune.provenance import training_provenance
from finetune.recovery import Job, recovered
from finetune.results import CurvePoint, TeacherJson, TrainingJson
from finetune.settings import GROUPS, Training
from finetune.students import Student, shared_student
from validate.loss import window_losses
from validate.rows import LossEvaluator


@dataclass(frozen=True)
class RecoveredModel:
    """A recovered model. Its weights are in the network as long as the `with` block lasts.

    Attributes:
        anatomy: the pruned network with the trained weights merged in
        plan: the experts it keeps
        weights: the tensors that were trained, by name
        curve: held-out loss during training, a row per point
        training: how it was trained, as the checkpoint's excise_recovery.json says it
        fingerprint: of the unpruned model
    """

    anatomy: Anatomy
    plan: Plan
    weights: dict[str, Tensor]
    curve: list[CurvePoint]
    training: TrainingJson
    fingerprint: str


@contextmanager
def recover(
    model: Model,
    plan: Plan,
    text: Windows,
    *,
    held_out: Windows,
    targets: str | Sequence[str] = GROUPS,
    rank: int = 8,
    alpha: float = 16.0,
    steps: int | None = None,
    learning_rate: float = 5e-4,
    ce: float = 1.0,
    kl: float = 1.0,
    temperature: float = 1.0,
    batch: int = 8,
    seed: int = 0,
    folder: str | Path | None = None,
) -> Iterator[RecoveredModel]:
    """Train a pruned model with LoRA; inside the `with` block `model` is the recovered one.

    The unpruned model is the teacher, from the same weights in memory. Afterwards the model is whole again.
    `prune.export(model, plan, out, recovered=…)` writes the result, inside the block or after it.
    Whether the choice of experts still matters after recovery, only random plans with the same training tell:
    `excise finetune` trains them. `validate.against_random` does not, and is refused inside the block.

    Args:
        model: a loaded model
        plan: experts to keep
        text: training windows; not those of the test
        held_out: windows on which the loss is measured during training; none of `text`, none that the plan's
            scores were made from
        targets: attention, router, experts, router_only, or names of weights
        rank: of the adapters (of every expert)
        alpha: adapters are scaled by alpha / rank
        steps: optimiser steps; by default one pass over the windows
        learning_rate: peak; linear warm-up over 5 % of the steps, then cosine to 0
        ce: weight of the cross-entropy of the text
        kl: weight of KL(teacher ‖ student); 0 = no teacher
        temperature: τ of the KL; its gradient is scaled by τ²
        batch: windows per step
        seed: of the adapters and of the order of windows
        folder: where states and the adapter go, so that an interrupted training resumes; by default a
            temporary one

    Raises:
        ExciseError: the model is streamed, a setting is out of range, the held-out text was seen before,
            memory runs out, a loss is not finite, or a weight moved that `targets` does not name.

    Example:
        >>> import criteria, experts, finetune
        >>> model = experts.load("demo")
        >>> text = criteria.windows(model, stdlib="code", split="train", sequences=4, length=32)
        >>> held_out = criteria.windows(model, stdlib="code", split="test", sequences=4, length=32)
        >>> plan = experts.Plan(16, {layer: tuple(range(8)) for layer in model.shape.layers})
        >>> with finetune.recover(model, plan, text, held_out=held_out, steps=1, batch=2) as recovered:
        ...     again = model.generate("def ", max_new_tokens=4)
        >>> [point["step"] for point in recovered.curve]
        [0.0, 1.0]
    """
    check_plan(model, plan)
    model.check_resident("recovery")
    _check_texts(plan, text, held_out)
    check_count("batch", batch)
    check_count("seed", seed, 0)
    settings = _settings(
        targets=targets,
        rank=rank,
        alpha=alpha,
        steps=steps,
        learning_rate=learning_rate,
        ce=ce,
        kl=kl,
        temperature=temperature,
    )
    with ExitStack() as stack:
        place = Path(folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="excise-")))
        student = stack.enter_context(
            shared_student(model.anatomy, plan, temperature=temperature, distil=kl > 0)
        )
        job = _job(model, plan, student, text, held_out, settings, batch, seed, place / "training")
        teacher: TeacherJson = {"model": model.name, "keep": "memory", "top_k": None}
        yield stack.enter_context(recovered_model(job, student, plan, teacher, model.fingerprint))


@contextmanager
def recovered_model(
    job: Job, student: Student, plan: Plan, teacher: TeacherJson, fingerprint: str
) -> Iterator[RecoveredModel]:
    """Train a student; inside the block it is the recovered model. `recover` and `excise finetune` call it.

    Args:
        job: the training
        student: a pruned model in memory, and its teacher
        plan: the experts it keeps
        teacher: what provenance says of the teacher
        fingerprint: of the unpruned model
    """
    with recovered(job, student.teacher_of) as merged:
        training = training_provenance(job, merged.tuned, teacher)
        yield RecoveredModel(student.anatomy, plan, merged.weights, merged.curve, training, fingerprint)


def _check_texts(plan: Plan, text: Windows, held_out: Windows) -> None:
    """Refuse held-out text that calibration or training has seen."""
    check_windows("text", text)
    check_held_out("held_out", held_out)
    check_unseen(text.tokens, held_out, "training", "for held_out")
    if plan.seen is not None:
        check_unseen(plan.seen, held_out, "calibration", "for held_out")


def _settings(**values: object) -> Training:
    try:
        return Training.model_validate(values)
    except ValidationError as error:
        raise ExciseError(f"recover: {first_problem(error, Training)}") from error


def _job(
    model: Model,
    plan: Plan,
    student: Student,
    text: Windows,
    held_out: Windows,
    settings: Training,
    batch: int,
    seed: int,
    folder: Path,
) -> Job:
    identities = (model.identity, plan.digest, text.hash, held_out.hash)
    return Job(
        anatomy=student.anatomy,
        counts=dict(plan.counts),
        windows=text,
        batch=batch,
        seed=seed,
        settings=settings,
        folder=folder,
        rounded=_rounding(student.anatomy.model),
        held_out=_held_out_loss(student.anatomy.model, held_out, batch),
        key=key_of("recover", *identities, settings.model_dump(), batch, seed),
        base=str(model.folder),
    )


def _rounding(network: PreTrainedModel) -> Callable[[str, Tensor], Tensor]:
    """A function that rounds a merged weight to the precision which the network holds it in."""
    dtypes = {name: weight.dtype for name, weight in network.named_parameters()}
    return lambda name, weight: weight.to(dtypes[name])


def _held_out_loss(network: PreTrainedModel, held_out: Windows, batch: int) -> Callable[[], float]:
    """A function that measures the mean loss of the network as it is, nats per token."""
    weights = LossEvaluator(held_out, batch=batch).weights
    return lambda: float(np.average(window_losses(network, held_out, batch), weights=weights))
