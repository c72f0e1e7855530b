"""How a model was trained, as every recovered checkpoint says it."""

from finetune.recovery import Job
from finetune.results import TeacherJson, TrainingJson
from finetune.targets import find_targets


def training_provenance(job: Job, tuned: int, teacher: TeacherJson) -> TrainingJson:
    """Return how a model was trained.

    Args:
        job: the training
        tuned: parameters that were trained
        teacher: of the KL; left out where the KL has no weight
    """
    settings = job.settings
    return {
        "targets": list(settings.targets),
        "rank": settings.rank,
        "alpha": settings.alpha,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "ce": settings.ce,
        "kl": settings.kl,
        "temperature": settings.temperature,
        "bf16": settings.bf16,
        "seed": job.seed,
        "teacher": teacher if settings.kl else None,
        "steps": job.steps,
        "tokens": job.steps * job.tokens_per_step,
        "text": job.windows.summary(),
        "tuned": tuned,
        "weights": len(find_targets(job.anatomy, settings.targets).weights),
    }
