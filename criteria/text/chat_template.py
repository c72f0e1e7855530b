"""The text of a conversation, written by the chat template of a tokenizer."""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from criteria.text.conversation import Messages
from criteria.text.readers.pieces import RowError, located
from experts.errors import ExciseError, let_through, one_line


class ChatTemplate:
    """A chat template of a tokenizer.

    Attributes:
        tokenizer: has the template
        key: of the recipe that asks for it, for messages
        name: of one of several templates; None = the only one
        text: the template itself
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        choice: bool | str,
        key: str = "chat_template",
    ) -> None:
        """Look up a template.

        Args:
            tokenizer: has the template
            choice: True = its own; or the name of one of several
            key: of the recipe that asks for it, for messages

        Raises:
            ExciseError: the tokenizer has no such template.
        """
        self.tokenizer, self.key = tokenizer, key
        self.name = choice if isinstance(choice, str) else None
        self.text = self._look_up()

    def _look_up(self) -> str:
        """The text of the template; forgets the name where the tokenizer has only one."""
        available = self.tokenizer.chat_template
        if not available:
            raise ExciseError(
                f"{self.key}: the tokenizer has no chat template; take the tokenizer of an instruct model, "
                "or chat_template: false, which takes the text without one"
            )
        several = isinstance(available, dict)
        templates = available if isinstance(available, dict) else {"default": available}
        name = self.name or "default"
        if name not in templates:
            raise ExciseError(f"{self.key}: the tokenizer has {_what_it_has(self.name, templates, several)}")
        self.name = self.name if several else None
        return str(templates[name])

    def check(self) -> str:
        """Try the template on a question, and on one that follows an example.

        Returns:
            The text of the template.

        Raises:
            ExciseError: the template cannot write them.
        """
        question: Messages = [{"role": "user", "content": "x"}]
        answer: Messages = [{"role": "assistant", "content": "y"}]
        with located(lambda: self.key):
            self.render(question)
            self.render([*question, *answer, *question])
        return self.text

    def render(self, messages: Messages, tools: Any = None) -> str:
        """Return a conversation as one text with its special tokens.

        Args:
            messages: the conversation
            tools: descriptions of the tools it may call, or the same as JSON

        Raises:
            RowError: the template refuses or fails; the message quotes it.
        """
        try:
            if isinstance(tools, str) and tools.strip():
                tools = json.loads(tools)
            options: dict[str, Any] = {"tools": tools or None, "chat_template": self.name, "tokenize": False}
            return str(self.tokenizer.apply_chat_template(messages, **options))
        except Exception as error:  # a template is a program of its author and may raise anything
            let_through(error)
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise RowError(
                f"the chat template cannot write this conversation ({reason}); "
                "leave the row out, or take the contents without a template (chat_template: false)"
            ) from error


def _what_it_has(wanted: str | None, templates: dict[str, str], several: bool) -> str:
    """Which templates a tokenizer has instead of the one that is wanted."""
    names = ", ".join(sorted(templates))
    if not wanted:
        return f"several templates and no default; name one: {names}"
    has = f"it has {names}" if several else "only one without a name: true"
    return f"no template {wanted!r}; {has}"
