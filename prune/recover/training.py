"""How a model was trained: as provenance in JSON, and as a sentence in report and card."""

from finetune.recovery import Job
from finetune.targets import find_targets
from prune.recipe.schema import FinetuneSettings
from prune.recover.result import TeacherJson, TrainingJson


def training_provenance(
    settings: FinetuneSettings, job: Job, tuned: int, model: str, keep: str
) -> TrainingJson:
    """How a model was trained.

    Args:
        tuned: parameters that were trained.
        model: the unpruned model, which is the teacher unless the recipe names another.
        keep: where the teacher was, `memory` or `disk`.
    """
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
        "seed": settings.seed,
        "teacher": _teacher(settings, model, keep) if settings.kl else None,
        "steps": job.steps,
        "tokens": job.steps * job.tokens_per_step,
        "text": job.windows.summary(),
        "tuned": tuned,
        "weights": len(find_targets(job.anatomy, settings.targets).weights),
    }


def _teacher(settings: FinetuneSettings, model: str, keep: str) -> TeacherJson:
    return {
        "model": settings.teacher.model or model,
        "keep": keep,
        "top_k": settings.teacher.top_k if keep == "disk" else None,
    }


def training_in_words(training: TrainingJson) -> str:
    """Adapters, loss, length and text of a training, in one sentence."""
    text = training["text"]
    return (
        f"LoRA of rank {training['rank']} on {', '.join(training['targets'])} "
        f"({training['weights']} weights, {training['tuned']:,} trained parameters); "
        f"loss = {_loss_in_words(training)}; "
        f"{training['steps']} steps, {training['tokens']:,} tokens of "
        f"{text['windows']} windows (hash {text['hash']}), "
        f"learning rate {training['learning_rate']:g}, seed {training['seed']}."
    )


def _loss_in_words(training: TrainingJson) -> str:
    terms = []
    if training["ce"]:
        terms.append(f"{training['ce']:g} · cross-entropy")
    if teacher := training["teacher"]:
        where = f"its best {teacher['top_k']} logits"
        if teacher["keep"] == "memory":
            where = "the same weights in memory"
        temperature = f"τ = {training['temperature']:g}"
        terms.append(f"{training['kl']:g} · KL to the teacher ({teacher['model']}, {where}, {temperature})")
    return " + ".join(terms)
