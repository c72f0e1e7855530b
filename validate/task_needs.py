"""What lm-eval would refuse, or stumble over, after hours of work: asked of tasks and tokenizer before it begins."""

import os
from collections.abc import Mapping
from typing import Any

from experts.errors import ExciseError

ALLOWED = "HF_ALLOW_CODE_EVAL"  # how the metric that runs code asks for consent
KEY = "validate.tasks.confirm_unsafe_code"
GENERATES = "generate_until"


def allow_code(confirmed: bool) -> None:
    """With the user's consent the metric of code tasks may be loaded, and run what the model writes."""
    if confirmed:
        os.environ[ALLOWED] = "1"


def refusal_of_code(message: str) -> str:
    """What to do where a task cannot be loaded because its metric runs code; empty for any other message."""
    if ALLOWED not in message:
        return ""
    return f"its metric runs code that the model writes; if you accept that on this machine, set {KEY}=true"


def check_tasks(tasks: Mapping[str, Any], confirmed: bool) -> None:
    """Raises ExciseError for tasks that lm-eval would refuse: code that is run without consent, images or sound."""
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False) and not confirmed:
            raise ExciseError(
                f"validate.tasks: {name} runs code that the model writes; if you accept that on this machine, set {KEY}=true, "
                "else leave the task out"
            )
        if getattr(task, "MULTIMODAL", False):
            raise ExciseError(f"validate.tasks: {name} shows images or sound; only tasks of text are run")


def check_tokenizer(tasks: Mapping[str, Any], tokenizer: Any, where: str) -> None:
    """Raises ExciseError where a tokenizer has no token that tasks need: before a text without context, after an answer."""
    if tokenizer.eos_token_id is None:
        if writes := [name for name, task in tasks.items() if task.OUTPUT_TYPE == GENERATES]:
            raise ExciseError(
                f"validate.tasks: {writes[0]} has the model write until the end of text, and the tokenizer of {where} has no eos_token; "
                "add it to tokenizer_config.json, or leave the task out"
            )
        if tokenizer.bos_token_id is None:
            raise ExciseError(
                f"validate.tasks: the tokenizer of {where} has neither bos_token nor eos_token, one of which begins a text without "
                "context; add it to tokenizer_config.json"
            )
