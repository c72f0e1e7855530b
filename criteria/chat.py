"""Conversations in rows, found by their structure, and their text by the tokenizer's own chat template.

OpenAI's shape: `messages: [{role, content}]`, content a text or a list of {type: text, text}. ShareGPT's: `conversations: [{from, value}]`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from criteria.pieces import RowError, located
from experts.errors import ExciseError, let_through, one_line

Messages = list[dict[str, Any]]
FIELDS = ("messages", "conversations")
ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot", "bing", "bard", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response"), "tool"),
}


def conversation(row: Any, fields: Sequence[str] = ()) -> Messages | None:
    """The conversation of a row, in OpenAI's shape; None where it holds none. fields: also looked in. Raises RowError for half a one."""
    if _is_conversation(row):
        return [_message(entry) for entry in row]
    if not isinstance(row, Mapping):
        return None
    found = next((row[name] for name in (*fields, *FIELDS) if _is_conversation(row.get(name))), None)
    if found is None:
        return None
    messages = [_message(entry) for entry in found]
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _is_conversation(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(entry, Mapping) and ("role" in entry or "from" in entry) for entry in value)


def _message(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Other keys (tool_calls, name, …) are handed on as they are."""
    message = {key: value for key, value in entry.items() if value is not None}
    if "role" not in message:
        sender = message.pop("from", None)
        if not isinstance(sender, str):
            raise RowError(f"a message is from {_shown(sender)}; expected human, gpt, system or tool")
        message["role"] = ROLES.get(sender.lower(), sender)
        if "value" in message:
            message["content"] = message.pop("value")
    if not isinstance(message["role"], str):
        raise RowError(f"a message has the role {_shown(message['role'])}, expected a name")
    if "content" in message:
        message["content"] = _content(message["content"])
    return message


def _content(content: Any) -> str:
    """The text of a message; its parts on lines of their own, because not every template takes a list."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None for part in parts]
    other = next((part for part, text in zip(parts, texts, strict=True) if not isinstance(text, str)), None)
    if other is not None or None in texts:
        kind = other.get("type") if isinstance(other, Mapping) else None
        raise RowError(f"a message holds {kind if isinstance(kind, str) else _shown(other)}, and only text can be read; leave the row out")
    return "\n".join(text for text in texts if isinstance(text, str))


def _shown(value: Any) -> str:
    return type(value).__name__ if value is not None else "null"


class Template:
    """A chat template of a tokenizer. choice: True = its own, or the name of one of several; key: where the recipe asks for it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, choice: bool | str, key: str = "chat_template") -> None:
        self.tokenizer, self.key, self.name = tokenizer, key, choice if isinstance(choice, str) else None
        self.text = self._look_up()

    def _look_up(self) -> str:
        known = self.tokenizer.chat_template
        if not known:
            raise ExciseError(
                f"{self.key}: the tokenizer has no chat template; take the tokenizer of an instruct model, "
                "or chat_template: false, which takes the text without one"
            )
        templates = known if isinstance(known, dict) else {"default": known}
        name, names = self.name or "default", ", ".join(sorted(templates))
        if self.name is None and name not in templates:
            raise ExciseError(f"{self.key}: the tokenizer has several templates and no default; name one: {names}")
        if self.name is not None and not isinstance(known, dict) and name != "default":
            raise ExciseError(f"{self.key}: the tokenizer has no template {name!r}, only one without a name; use true")
        if name not in templates:
            raise ExciseError(f"{self.key}: the tokenizer has no template {name!r}; it has {names}")
        self.name = self.name if isinstance(known, dict) else None
        return str(templates[name])

    def tried(self) -> str:
        """The template, once it has written a question, and one after an example. Raises ExciseError."""
        question: Messages = [{"role": "user", "content": "x"}]
        with located(lambda: self.key):
            for messages in (question, [*question, {"role": "assistant", "content": "y"}, *question]):
                self.render(messages)
        return self.text

    def render(self, messages: Messages, tools: Any = None) -> str:
        """The conversation as one text, special tokens included. Raises RowError with what the template says against it."""
        try:
            tools = json.loads(tools) if isinstance(tools, str) and tools.strip() else tools
            text = self.tokenizer.apply_chat_template(messages, tools=tools or None, chat_template=self.name, tokenize=False)
        except Exception as error:  # a template is a program of its author: it raises what it likes
            let_through(error)
            said = f"{type(error).__name__}: {one_line(error)}"
            raise RowError(
                f"the chat template cannot write this conversation ({said}); "
                "leave the row out, or take the contents without a template (chat_template: false)"
            ) from error
        return str(text)


def plain(messages: Messages) -> str:
    """The contents alone, a line end between them."""
    return "\n".join(message["content"] for message in messages if message.get("content"))
