"""Rows to text: fields, conversations, rows without text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from criteria.text.chat import FIELDS, Messages, Template, conversation, plain, with_system
from criteria.text.readers.pieces import Piece, RowError
from criteria.text.sources import Source
from experts.errors import ExciseError

MOST_SHOWN = 12  # names of columns in a message


class RowText:
    """The text of the rows of one source.

    choice: its chat_template, None = the tokenizer's own where rows are conversations; say: takes notes.
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
        self.fields = [names.split("|") for names in source.field]
        self.names = [name for names in self.fields for name in names]
        self.template = Template(tokenizer, choice, f"{self.what}: chat_template") if choice else None
        self.seen = self.blank = 0

    @property
    def columns(self) -> list[str]:
        """Names of everything that is looked at in a row."""
        return [*self.names, *FIELDS, "system", "tools"]

    def __call__(self, document: str, row: Any) -> Piece | None:
        """Its piece, or None where it is null or empty. Raises RowError."""
        self.seen += 1
        text, chat = self._text(row)
        if not text.strip():
            self.blank += 1
            return None
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            what = f"{half} is half of a surrogate pair and no text"
            raise RowError(f"{what}; write the pair, or leave the row out") from error
        return Piece(document, text, chat=chat)

    def refuse_prose(self, where: str) -> None:
        """Plain text has no turns that a template could write."""
        if self.choice:
            raise ExciseError(
                f"{where}: chat_template writes conversations and rows, and this is plain text; give this source "
                "chat_template: false, or the text as rows (jsonl, dataset): each becomes a user's message"
            )

    def again(self) -> None:
        """Forgets the counts: the rows come once more."""
        self.seen = self.blank = 0

    def tell(self) -> None:
        """Says how many rows had no text."""
        if self.blank:
            count = f"{self.blank:,} of {self.seen:,} rows that were read"
            self.say(f"{self.what}: {count} are null or empty and were left out")

    def _text(self, row: Any) -> tuple[str, bool]:
        if row is None:
            return "", False
        if isinstance(row, str):
            return self._prose([row])
        found = conversation(row, self.fields) if self.choice or not self._has_text(row) else None
        if found is None:
            return self._prose(self._values(row), row)
        if self.choice is False:
            return plain(found), False
        return self._by_template(found, row.get("tools") if isinstance(row, Mapping) else None)

    def _prose(self, values: Sequence[str | None], row: Any = None) -> tuple[str, bool]:
        """Of a row without turns. With a template the last field is an answer, the rest a question."""
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
            self.template = Template(self.tokenizer, True, f"{self.what}: chat_template")
            self.say(
                f"{self.what}: its rows are conversations, written by the tokenizer's chat template "
                "(chat_template: true says so, chat_template: false reads their contents as plain text)"
            )
        return self.template.render(messages, tools), True

    def _has_text(self, row: Any) -> bool:
        if not isinstance(row, Mapping):
            return False
        return all(any(_is_text(row.get(name)) for name in names) for names in self.fields)

    def _values(self, row: Any) -> list[str | None]:
        if not isinstance(row, Mapping):
            has = f"it has {type(row).__name__}, expected an object or a text"
            raise RowError(f"no text in field {self.names[0]!r}; {has}")
        return [self._value(row, names) for names in self.fields]

    def _value(self, row: Mapping[str, Any], names: list[str]) -> str | None:
        """The first of the names that the row has; None where it is null."""
        if name := next((name for name in names if row.get(name) is not None), None):
            if not isinstance(row[name], str):
                raise RowError(f"field {name!r} holds {type(row[name]).__name__}, expected text")
            return str(row[name])
        if any(name in row for name in names) or any(row.get(field, 0) in (None, []) for field in FIELDS):
            return None
        if talk := next((field for field in FIELDS if field in row), None):
            raise RowError(f"{talk} is no conversation; expected {{role, content}} or {{from, value}}")
        have = sorted(map(str, row))[:MOST_SHOWN]
        raise RowError(f"no text in field {'|'.join(names)!r}; it has {have}{_way(names, have)}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _way(names: list[str], have: list[str]) -> str:
    if not have:
        return ""
    several = f"{names[0]}|{have[0]}"
    return f"; name the one to read (field: {have[0]}), or several to choose from (field: {several})"
