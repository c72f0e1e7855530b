"""Conversations in rows, recognised by their structure.

Two structures are read:

- OpenAI's: `messages: [{role, content}]`, where the content is a string or a list of {type: text, text}
- ShareGPT's: `conversations: [{from, value}]`
"""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from criteria.text.readers.pieces import RowError

Message = dict[str, Any]
Messages = list[Message]

CONVERSATION_COLUMNS = ("messages", "conversations")
CONTENT_KEYS = ("value", "text")  # other names for the content of a message

USERS = ("human", "user")
ASSISTANTS = ("gpt", "assistant", "chatgpt", "model", "bot", "bing", "bard", "function_call")
TOOLS = ("tool", "function", "observation", "function_response")

# Sender under `from` -> role.
ROLES = {
    **dict.fromkeys(USERS, "user"),
    **dict.fromkeys(ASSISTANTS, "assistant"),
    **dict.fromkeys(TOOLS, "tool"),
}
# Senders that some data sets write under `role` -> role.
NICKNAMES = {
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bot", "bing", "bard"), "assistant"),
}


def conversation(row: Any, fields: Sequence[Sequence[str]] = ()) -> Messages | None:
    """Return the conversation of a row in OpenAI's structure, None if the row holds none.

    Args:
        row: turns, or a mapping with turns in one of its columns
        fields: groups of columns that are searched first; of each group the first column with a value counts,
            and the turns and strings of several groups make one conversation

    Raises:
        RowError: a message is malformed.
    """
    if turns := _turns(row):
        return [_message(turn) for turn in turns]
    if not isinstance(row, Mapping):
        return None
    values = [_first_value(row, columns) for columns in fields]
    messages = _join(values) or _usual_messages(row)
    return with_system(messages, row) if messages else None


def with_system(messages: Messages, row: Any) -> Messages:
    """Return the messages behind the `system` text of the row, unless they begin with one of their own."""
    system = row.get("system") if isinstance(row, Mapping) else None
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    return messages


def contents(messages: Messages) -> str:
    """Return the contents of the messages without a template, one after the other on lines of their own."""
    return "\n".join(message["content"] for message in messages if message.get("content"))


def _first_value(row: Mapping[str, Any], columns: Sequence[str]) -> Any:
    """The value of the first of some columns that has one."""
    return next((row[column] for column in columns if row.get(column) is not None), None)


def _usual_messages(row: Mapping[str, Any]) -> Messages:
    """The messages of the first column with a usual name that holds turns."""
    for column in CONVERSATION_COLUMNS:
        if turns := _turns(row.get(column)):
            return [_message(turn) for turn in turns]
    return []


def _join(values: Sequence[Any]) -> Messages:
    """Join turns and strings to one conversation; without any turns there is none.

    A string before the turns is the user's, a string behind them is an answer.
    """
    turns_of_values = [_turns(value) for value in values]
    if not any(turns_of_values):
        return []
    messages: Messages = []
    for value, turns in zip(values, turns_of_values, strict=True):
        if turns:
            messages += [_message(turn) for turn in turns]
        elif isinstance(value, str) and value.strip():
            messages.append({"role": _role_of_string(messages), "content": value})
    return messages


def _role_of_string(before: Messages) -> str:
    """Who says a string behind these messages."""
    someone_spoke = any(message["role"] != "system" for message in before)
    return "assistant" if someone_spoke else "user"


def _turns(value: Any) -> list[Mapping[str, Any]] | None:
    """The turns of a conversation: a list of them or, as some data sets store it, one list for every key."""
    if isinstance(value, Mapping):
        value = _rows_of_columns(value)
    if not isinstance(value, list) or not value:
        return None
    return value if all(_is_turn(turn) for turn in value) else None


def _rows_of_columns(columns: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """{role: [a, b], content: [c, d]} as [{role: a, content: c}, {role: b, content: d}]."""
    if not all(isinstance(column, list) for column in columns.values()):
        return None
    rows = zip(*columns.values(), strict=False)
    return [dict(zip(columns, row, strict=False)) for row in rows]


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, Mapping) and ("role" in turn or "from" in turn)


def _message(turn: Mapping[str, Any]) -> Message:
    """A turn in OpenAI's structure. Other keys (tool_calls, name, …) are kept as they are."""
    message = {key: value for key, value in turn.items() if value is not None}
    message["role"] = _take_role(message)
    _rename_content(message)
    if "content" in message:
        message["content"] = _text_of_content(message["content"])
    elif not message.get("tool_calls") and not any(key in turn for key in ("content", *CONTENT_KEYS)):
        raise RowError(f"a message has no content; it has {', '.join(sorted(map(str, turn)))}")
    return message


def _take_role(message: MutableMapping[str, Any]) -> str:
    """The role of a message; removes its `from`."""
    if "role" in message:
        role = message["role"]
    else:
        sender = message.pop("from", None)
        if not isinstance(sender, str):
            raise RowError(f"a message is from {_type_name(sender)}; expected human, gpt, system or tool")
        role = ROLES.get(sender.lower(), sender)
    if not isinstance(role, str):
        raise RowError(f"a message has the role {_type_name(role)}, expected a name")
    return NICKNAMES.get(role.lower(), role)


def _rename_content(message: MutableMapping[str, Any]) -> None:
    """Move the content from another key to `content`."""
    if "content" in message:
        return
    key = next((key for key in CONTENT_KEYS if key in message), None)
    if key is not None:
        message["content"] = message.pop(key)


def _text_of_content(content: Any) -> str:
    """The text of a message. Parts get lines of their own, because not every template takes a list."""
    parts = content if isinstance(content, list) else [content]
    return "\n".join(_text_of_part(part) for part in parts)


def _text_of_part(part: Any) -> str:
    if isinstance(part, Mapping):
        text = part.get("text")
        kind = part.get("type", "text")
    else:
        text = part
        kind = _type_name(part)
    if isinstance(text, str):
        return text
    if text is None and kind == "text":
        return ""
    raise RowError(f"a message holds {kind}, and only text can be read; leave the row out")


def _type_name(value: Any) -> str:
    return "null" if value is None else type(value).__name__
