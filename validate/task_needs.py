"""What lm-eval would refuse, or fail at, after hours of work: tasks and tokenizer are checked before."""

import os
from collections.abc import Mapping
from typing import Any

from experts.errors import ExciseError

ALLOWED = "HF_ALLOW_CODE_EVAL"  # how the metric that runs code asks for consent
KEY = "validate.tasks.confirm_unsafe_code"
GENERATES = "generate_until"
CONSENT = f"if you accept that on this machine, set {KEY}=true"


def allow_code(confirmed: bool) -> None:
    """With the user's consent, let the metric of code tasks be loaded, and run what the model writes."""
    if confirmed:
        os.environ[ALLOWED] = "1"


def refusal_of_code(message: str) -> str:
    """Return what to do where a metric that runs code keeps a task from loading; empty for other messages."""
    if ALLOWED not in message:
        return ""
    return f"its metric runs code that the model writes; {CONSENT}"


def check_tasks(tasks: Mapping[str, Any], confirmed: bool) -> None:
    """Refuse tasks that lm-eval would refuse.

    Args:
        tasks: lm-eval's tasks by name
        confirmed: whether code that the model writes may be run

    Raises:
        ExciseError: for code that would run without consent, images or sound.
    """
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False) and not confirmed:
            what = f"{name} runs code that the model writes"
            raise ExciseError(f"validate.tasks: {what}; {CONSENT}, else leave the task out")
        if getattr(task, "MULTIMODAL", False):
            raise ExciseError(f"validate.tasks: {name} shows images or sound; only tasks of text are run")


def check_tokenizer(tasks: Mapping[str, Any], tokenizer: Any, where: str) -> None:
    """Refuse a tokenizer without a token that tasks need: before a text without context, or after an answer.

    Args:
        tasks: lm-eval's tasks by name
        tokenizer: of the model
        where: the model's folder, for the message

    Raises:
        ExciseError: that names the missing token.
    """
    if tokenizer.eos_token_id is not None:
        return
    for name, task in tasks.items():
        if task.OUTPUT_TYPE == GENERATES:
            raise ExciseError(
                f"validate.tasks: {name} has the model write until the end of text, and the tokenizer of "
                f"{where} has no eos_token; add it to tokenizer_config.json, or leave the task out"
            )
    if tokenizer.bos_token_id is None:
        raise ExciseError(
            f"validate.tasks: the tokenizer of {where} has neither bos_token nor eos_token, one of which "
            "begins a text without context; add it to tokenizer_config.json"
        )
