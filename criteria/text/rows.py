"""Rows to text: fields, conversations, rows without text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from criteria.text.chat_template import ChatTemplate
from criteria.text.conversation import CONVERSATION_COLUMNS, Messages, contents, conversation, with_system
from criteria.text.readers.pieces import Piece, RowError
from criteria.text.sources import Source
from experts.errors import ExciseError

MOST_SHOWN = 12  # names of columns in a message


class RowText:
    """The text of the rows of one source.

    Attributes:
        tokenizer: has the chat template
        choice: of the chat template: true, false or a name; None = the tokenizer's own for conversations
        say: takes notes on what was read
        what: the source, for messages
        groups: of columns; the text of a row is the first value of each
        template: the chat template, as soon as it is needed
        seen: rows so far
        blank: rows without text so far
    """

    def __init__(
        self,
        source: Source,
        tokenizer: PreTrainedTokenizerBase,
        choice: bool | str | None,
        say: Callable[[str], None],
    ) -> None:
        self.tokenizer, self.choice, self.say = tokenizer, choice, say
        self.what = f"data ({source.label})"
        self.groups = [names.split("|") for names in source.field]
        self.template = self._look_up(choice) if choice else None
        self.seen = 0
        self.blank = 0

    @property
    def columns(self) -> list[str]:
        """Names of all columns of a row that may be read."""
        named = [name for group in self.groups for name in group]
        return [*named, *CONVERSATION_COLUMNS, "system", "tools"]

    def __call__(self, document: str, row: Any) -> Piece | None:
        """Return the text of a row, None where it is null or empty.

        Args:
            document: name of the row
            row: its value: a string, a mapping or turns

        Raises:
            RowError: the row holds something else, or no text where it should.
        """
        self.seen += 1
        text, by_template = self._text(row)
        if not text.strip():
            self.blank += 1
            return None
        _check_encodable(text)
        return Piece(document, text, chat=by_template)

    def refuse_prose(self, where: str) -> None:
        """Refuse plain text where a chat template is asked for: it has no turns to write.

        Args:
            where: name of the text, for the message

        Raises:
            ExciseError: a chat template is asked for.
        """
        if self.choice:
            raise ExciseError(
                f"{where}: chat_template writes conversations and rows, and this is plain text; "
                "give this source chat_template: false, or the text as rows (jsonl, dataset): "
                "each becomes a user's message"
            )

    def again(self) -> None:
        """Forget the counts, because the rows are read once more."""
        self.seen = 0
        self.blank = 0

    def tell(self) -> None:
        """Note how many rows had no text."""
        if self.blank:
            count = f"{self.blank:,} of {self.seen:,} rows that were read"
            self.say(f"{self.what}: {count} are null or empty and were left out")

    def _text(self, row: Any) -> tuple[str, bool]:
        """(text of a row, whether the chat template wrote it)."""
        if row is None:
            return "", False
        if isinstance(row, str):
            return self._prose([row])
        messages = self._messages(row)
        if messages is None:
            return self._prose(self._values(row), row)
        if self.choice is False:
            return contents(messages), False
        tools = row.get("tools") if isinstance(row, Mapping) else None
        return self._by_template(messages, tools)

    def _messages(self, row: Any) -> Messages | None:
        """The conversation of a row. Where no template is asked for, text in all fields takes precedence."""
        if not self.choice and self._has_text(row):
            return None
        return conversation(row, self.groups)

    def _prose(self, values: Sequence[str | None], row: Any = None) -> tuple[str, bool]:
        """(text of a row without turns, whether the chat template wrote it).

        With a template the last of several fields is an answer, and the rest is a question.
        """
        written = [value for value in values if value is not None]
        if not self.choice or not any(value.strip() for value in written):
            return "\n".join(written), False
        asked, answer = (values[:-1], values[-1]) if len(values) > 1 else (values, None)
        question = "\n".join(value for value in asked if value and value.strip())
        messages: Messages = [{"role": "user", "content": question}]
        if answer:
            messages.append({"role": "assistant", "content": answer})
        return self._by_template(with_system(messages, row))

    def _by_template(self, messages: Messages, tools: Any = None) -> tuple[str, bool]:
        if self.template is None:
            self.template = self._look_up(True)
            self.say(
                f"{self.what}: its rows are conversations, written by the tokenizer's chat template "
                "(chat_template: true says so, chat_template: false reads their contents as plain text)"
            )
        return self.template.render(messages, tools), True

    def _look_up(self, choice: bool | str) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, choice, f"{self.what}: chat_template")

    def _has_text(self, row: Any) -> bool:
        """Whether every field of a row has a text."""
        if not isinstance(row, Mapping):
            return False
        return all(_any_text(row, group) for group in self.groups)

    def _values(self, row: Any) -> list[str | None]:
        """The value of every field of a row."""
        if not isinstance(row, Mapping):
            has = f"it has {type(row).__name__}, expected an object or a text"
            raise RowError(f"no text in field {self.groups[0][0]!r}; {has}")
        return [_value(row, group) for group in self.groups]


def _check_encodable(text: str) -> None:
    """Refuse text that is no Unicode: JSON can hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise RowError(
            f"{half} is half of a surrogate pair and no text; write the pair, or leave the row out"
        ) from error


def _any_text(row: Mapping[str, Any], group: Sequence[str]) -> bool:
    """Whether a column of a group holds a text."""
    values = [row.get(name) for name in group]
    return any(isinstance(value, str) and bool(value.strip()) for value in values)


def _value(row: Mapping[str, Any], group: Sequence[str]) -> str | None:
    """The first value in the columns of a group; None where they are null."""
    for name in group:
        value = row.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise RowError(f"field {name!r} holds {type(value).__name__}, expected text")
        return value
    if any(name in row for name in group) or _has_empty_conversation(row):
        return None
    for column in CONVERSATION_COLUMNS:
        if column in row:
            raise RowError(f"{column} is no conversation; expected {{role, content}} or {{from, value}}")
    columns = sorted(map(str, row))[:MOST_SHOWN]
    raise RowError(f"no text in field {'|'.join(group)!r}; it has {columns}{_way_out(group, columns)}")


def _has_empty_conversation(row: Mapping[str, Any]) -> bool:
    """Whether a column for conversations is null or an empty list."""
    values = [row[column] for column in CONVERSATION_COLUMNS if column in row]
    return any(value is None or value == [] for value in values)


def _way_out(group: Sequence[str], columns: list[str]) -> str:
    """How to name the column of the text."""
    if not columns:
        return ""
    several = f"{group[0]}|{columns[0]}"
    return f"; name the one to read (field: {columns[0]}), or several to choose from (field: {several})"
