"""Conversations in rows, found by their structure, and their text by the tokenizer's own chat template.

OpenAI's shape: `messages: [{role, content}]`, content a text or a list of {type: text, text}.
ShareGPT's: `conversations: [{from, value}]`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from criteria.text.readers.pieces import RowError, located
from experts.errors import ExciseError, let_through, one_line

Messages = list[dict[str, Any]]
FIELDS = ("messages", "conversations")
USERS = ("human", "user")
ASSISTANTS = ("gpt", "assistant", "chatgpt", "model", "bot", "bing", "bard", "function_call")
TOOLS = ("tool", "function", "observation", "function_response")
NICKNAMES = {
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bot", "bing", "bard"), "assistant"),
}  # under `role`
CONTENTS = ("value", "text")  # what some call the content of a message
ROLES = {
    **dict.fromkeys(USERS, "user"),
    **dict.fromkeys(ASSISTANTS, "assistant"),
    **dict.fromkeys(TOOLS, "tool"),
}


def conversation(row: Any, fields: Sequence[Sequence[str]] = ()) -> Messages | None:
    """The conversation of a row, in OpenAI's shape; None where it holds none.

    fields: also looked in, of each group the first that the row has; turns and texts of several make one conversation.
    Raises RowError for one that is not whole.
    """
    if turns := _turns(row):
        return [_message(turn) for turn in turns]
    if not isinstance(row, Mapping):
        return None
    named = [next((row[name] for name in group if row.get(name) is not None), None) for group in fields]
    usual = next((name for name in FIELDS if _turns(row.get(name))), None)
    messages = _joined(named) or (_joined([row[usual]]) if usual else [])
    if not messages:
        return None
    return with_system(messages, row)


def with_system(messages: Messages, row: Any) -> Messages:
    """The same behind the row's `system` text, if it has one and the conversation has none."""
    system = row.get("system") if isinstance(row, Mapping) else None
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    return messages


def _joined(values: Sequence[Any]) -> Messages:
    """Turns one after the other; a text before them is the user's, one behind them an answer. Nothing where there are no turns."""
    found: Messages = []
    known = [_turns(value) for value in values]
    if not any(known):
        return []
    for value, turns in zip(values, known, strict=True):
        if turns:
            found += [_message(turn) for turn in turns]
        elif isinstance(value, str) and value.strip():
            found.append(
                {
                    "role": "assistant" if any(message["role"] != "system" for message in found) else "user",
                    "content": value,
                }
            )
    return found


def _turns(value: Any) -> list[Mapping[str, Any]] | None:
    """The turns of a conversation: a list of them, or, as some data sets keep it, a list for every key."""
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        value = [dict(zip(value, turn, strict=False)) for turn in zip(*value.values(), strict=False)]
    if not isinstance(value, list) or not value:
        return None
    told = (isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in value)
    return value if all(told) else None


def _message(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Other keys (tool_calls, name, …) are handed on as they are."""
    message = {key: value for key, value in turn.items() if value is not None}
    if "role" not in message:
        sender = message.pop("from", None)
        if not isinstance(sender, str):
            raise RowError(f"a message is from {_kind(sender)}; expected human, gpt, system or tool")
        message["role"] = ROLES.get(sender.lower(), sender)
    if not isinstance(message["role"], str):
        raise RowError(f"a message has the role {_kind(message['role'])}, expected a name")
    message["role"] = NICKNAMES.get(message["role"].lower(), message["role"])
    if "content" not in message and (name := next((name for name in CONTENTS if name in message), None)):
        message["content"] = message.pop(name)
    if "content" in message:
        message["content"] = _content(message["content"])
    elif not message.get("tool_calls") and not any(name in turn for name in ("content", *CONTENTS)):
        raise RowError(f"a message has no content; it has {', '.join(sorted(map(str, turn)))}")
    return message


def _content(content: Any) -> str:
    """The text of a message; its parts on lines of their own, because not every template takes a list."""
    return "\n".join(map(_part, content if isinstance(content, list) else [content]))


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if isinstance(text, str):
        return text
    kind = part.get("type", "text") if isinstance(part, Mapping) else _kind(part)
    if text is None and kind == "text":
        return ""
    raise RowError(f"a message holds {kind}, and only text can be read; leave the row out")


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


class Template:
    """A chat template of a tokenizer.

    choice: True = its own, or the name of one of several; key: where the recipe asks for it, for messages.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        choice: bool | str,
        key: str = "chat_template",
    ) -> None:
        self.tokenizer, self.key = tokenizer, key
        self.name = choice if isinstance(choice, str) else None
        self.text = self._look_up()

    def _look_up(self) -> str:
        known = self.tokenizer.chat_template
        if not known:
            raise ExciseError(
                f"{self.key}: the tokenizer has no chat template; take the tokenizer of an instruct model, "
                "or chat_template: false, which takes the text without one"
            )
        several = isinstance(known, dict)
        templates = known if isinstance(known, dict) else {"default": known}
        name, names = self.name or "default", ", ".join(sorted(templates))
        if name not in templates:
            has = f"it has {names}" if several else "only one without a name: true"
            none = f"several templates and no default; name one: {names}"
            what = f"no template {name!r}; {has}" if self.name else none
            raise ExciseError(f"{self.key}: the tokenizer has {what}")
        self.name = self.name if several else None
        return str(templates[name])

    def tried(self) -> str:
        """The template, once it has written a question, and one after an example. Raises ExciseError."""
        question: Messages = [{"role": "user", "content": "x"}]
        with located(lambda: self.key):
            for messages in (question, [*question, {"role": "assistant", "content": "y"}, *question]):
                self.render(messages)
        return self.text

    def render(self, messages: Messages, tools: Any = None) -> str:
        """The conversation as one text with its special tokens. Raises RowError with what it says."""
        try:
            tools = json.loads(tools) if isinstance(tools, str) and tools.strip() else tools
            options: dict[str, Any] = {"tools": tools or None, "chat_template": self.name, "tokenize": False}
            return str(self.tokenizer.apply_chat_template(messages, **options))
        except Exception as error:  # a template is a program of its author: it raises what it likes
            let_through(error)
            said = f"{type(error).__name__}: {one_line(error)}"
            raise RowError(
                f"the chat template cannot write this conversation ({said}); "
                "leave the row out, or take the contents without a template (chat_template: false)"
            ) from error


def plain(messages: Messages) -> str:
    """The contents alone, a line end between them."""
    return "\n".join(message["content"] for message in messages if message.get("content"))
