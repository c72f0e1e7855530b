"""How a model was trained, as a sentence in report and card."""

from criteria.text.sampled.settings import in_words
from finetune.results import TrainingJson


def training_in_words(training: TrainingJson) -> str:
    """Adapters, loss, length and text of a training, in one sentence."""
    text = training["text"]
    return (
        f"LoRA of rank {training['rank']} on {', '.join(training['targets'])} "
        f"({training['weights']} weights, {training['tuned']:,} trained parameters); "
        f"loss = {_loss_in_words(training)}; "
        f"{training['steps']} steps, {training['tokens']:,} tokens of "
        f"{text['windows']} windows (hash {text['hash']}{in_words(text.get('sampled', ()))}), "
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
