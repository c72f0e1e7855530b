"""Conversations: found by their structure, written by the tokenizer's own template, no special
token twice.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from criteria.text.bos import Bos
from criteria.text.reading import read_windows
from criteria.text.sources import Source
from criteria.text.windows import Windows
from experts.errors import ExciseError
from tests.support import talking, tiny

STRICT, FREE = talking.tokenizer(talking.STRICT), talking.tokenizer(talking.FREE)
PLAIN = talking.tokenizer()
TERSE = "{% for m in messages %}{{ m['content'] }}/{% endfor %}"
SEVERAL = talking.tokenizer({"default": talking.FREE, "terse": TERSE})
OPENAI = {"messages": [{"role": "user", "content": "q" * 9}, {"role": "assistant", "content": "a" * 8}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "q" * 9}, {"from": "gpt", "value": "a" * 8}]}


def file(folder: Path, rows: list[Any]) -> Path:
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "chat.jsonl"


def read(
    path: Path,
    tokenizer: Any,
    length: int,
    sequences: int = 1,
    notes: list[str] | None = None,
    part: Any = None,
    **source: Any,
) -> Windows:
    say = (lambda _: None) if notes is None else notes.append
    sources = [Source.model_validate({"jsonl": path, **source})]
    return read_windows(
        sources, tokenizer, length=length, sequences=sequences, seed=0, chat_template=part, say=say
    )


def written(folder: Path, row: Any, tokenizer: Any = FREE, length: int = 40, **source: Any) -> str:
    """The first window of the row, which is repeated until it is full; the beginning of the text is taken
    off.
    """
    found = str(tokenizer.decode(read(file(folder, [row] * 40), tokenizer, length, **source).tokens[0]))
    return found.removeprefix("<bos>")


@pytest.mark.parametrize(
    ("row", "source", "expected"),
    [
        (OPENAI, {}, "<user>qqqqqqqqq<assistant>aaaaaaaa<eos>"),
        (SHAREGPT, {}, "<user>qqqqqqqqq<assistant>aaaaaaaa<eos>"),
        ({"conversations": OPENAI["messages"]}, {}, "<user>qqqqqqqqq<assistant>aaaaaaaa<eos>"),
        ({"messages": SHAREGPT["conversations"]}, {}, "<user>qqqqqqqqq<assistant>aaaaaaaa<eos>"),
        (
            {"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}},
            {},
            "<user>q<assistant>a<eos>",
        ),
        ({"conversations": {"from": ["human"], "value": ["q"]}, "n": 1}, {}, "<user>q<eos>"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": None}, "b"]}]},
            {},
            "<user>\nb<eos>",
        ),
        (OPENAI["messages"], {}, "<user>qqqqqqqqq<assistant>aaaaaaaa<eos>"),
        (
            {"chosen": OPENAI["messages"], "n": 1},
            {"field": "chosen"},
            "<user>qqqqqqqqq<assistant>aaaaaaaa<eos>",
        ),
        ({**SHAREGPT, "system": "s"}, {}, "<system>s<user>qqqqqqqqq<assistant>aaaaaaaa<eos>"),
        ({**OPENAI, "text": "words"}, {"chat_template": True}, "<user>qqqqqqqqq<assistant>aaaaaaaa<eos>"),
        ({**OPENAI, "text": "words"}, {}, "words<eos>"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                    }
                ]
            },
            {},
            "<user>a\nb<eos>",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
                ]
            },
            {},
            "<assistant>f()<eos>",
        ),
        (
            {"conversations": [{"from": "Observation", "value": "o"}, {"from": "critic", "value": "c"}]},
            {},
            "<tool>o<critic>c<eos>",
        ),
        ({"messages": [{"role": "user", "content": "q"}], "tools": [{"name": "t"}]}, {}, "[t]<user>q<eos>"),
        ({"messages": [{"role": "user", "content": "q"}], "tools": '[{"name": "t"}]'}, {}, "[t]<user>q<eos>"),
        ({"text": "prose"}, {"chat_template": True}, "<user>prose<eos>"),
        (
            {"ask": "x", "more": None, "say": "y"},
            {"field": ["ask", "more", "say"], "chat_template": True},
            "<user>x<assistant>y<eos>",
        ),
        (
            {"ask": "x", "more": "z", "say": ""},
            {"field": ["ask", "more", "say"], "chat_template": True},
            "<user>x\nz<eos>",
        ),
        (OPENAI, {"chat_template": False}, "qqqqqqqqq\naaaaaaaa<eos>"),
        ("prose", {"chat_template": True}, "<user>prose<eos>"),
    ],
)
def test_shapes(tmp_path: Path, row: Any, source: dict[str, Any], expected: str) -> None:
    """What the template writes; behind it one end token, whoever writes it."""
    repeated = expected * 40
    assert written(tmp_path, row, **source) == repeated[: len(written(tmp_path, row, **source))]


def test_nothing_is_doubled(tmp_path: Path) -> None:
    """Where the template writes the beginning of the text itself: one in a window, also where a document goes
    on.
    """
    path = file(tmp_path, [OPENAI] * 4 + [{"messages": [{"role": "user", "content": "x" * 200}]}] * 2)
    windows = read(path, STRICT, 50, 8)
    assert (windows.tokens[:, 0] == STRICT.bos_token_id).all()
    assert (windows.tokens == STRICT.bos_token_id).sum() == 8
    first = STRICT.apply_chat_template(OPENAI["messages"])["input_ids"]
    assert windows.tokens[0, : len(first)].tolist() == first
    short = Source(jsonl=(file(tmp_path, [OPENAI] * 4),))
    never = read_windows([short], STRICT, length=50, sequences=1, seed=0, bos=Bos.NEVER, say=lambda _: None)
    assert (never.tokens == STRICT.bos_token_id).sum() == 2, "what the template writes, the template writes"


def test_who_decides(tmp_path: Path) -> None:
    """The source, else its block; without either the tokenizer's template writes, and that is said once."""
    path, notes = file(tmp_path, [OPENAI] * 9), []
    own = read(path, SEVERAL, 60, notes=notes)
    assert len(notes) == 1
    assert notes[0].startswith(
        "data (jsonl): its rows are conversations, written by the tokenizer's chat template"
    )
    quiet: list[str] = []
    assert read(path, SEVERAL, 60, notes=quiet, chat_template=True).hash == own.hash
    assert read(path, SEVERAL, 60, notes=quiet, part=True).hash == own.hash
    assert quiet == []
    terse = read(path, SEVERAL, 60, chat_template="terse")
    assert str(SEVERAL.decode(terse.tokens[0])).startswith("<bos>qqqqqqqqq/aaaaaaaa/<eos>q")
    assert read(path, SEVERAL, 60, part="terse").hash == terse.hash
    assert read(path, SEVERAL, 60, part="terse", chat_template=True).hash == own.hash
    assert read(path, SEVERAL, 60, part="terse", chat_template=False).hash not in (own.hash, terse.hash)


def test_parquet_fills_missing_keys_with_nulls(tmp_path: Path) -> None:
    rows = [OPENAI, {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]}]
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read(tmp_path / "a.parquet", FREE, 40).hash == read(tmp_path / "a.jsonl", FREE, 40).hash


@pytest.mark.parametrize(
    ("tokenizer", "rows", "choice", "message"),
    [
        (
            PLAIN,
            [OPENAI],
            None,
            (
                r"data \(jsonl\): chat_template: the tokenizer has no chat "
                r"template; take .* or chat_template: false"
            ),
        ),
        (PLAIN, [{"text": "x"}], True, r"data \(jsonl\): chat_template: the tokenizer has no chat template"),
        (
            STRICT,
            [OPENAI],
            "terse",
            r"the tokenizer has no template 'terse'; only one without a name: true",
        ),
        (SEVERAL, [OPENAI], "tersee", r"the tokenizer has no template 'tersee'; it has default, terse"),
        (
            talking.tokenizer({"a": "", "b": ""}),
            [OPENAI],
            True,
            r"several templates and no default; name one: a, b",
        ),
        (
            talking.tokenizer("{% for"),
            [OPENAI],
            True,
            r"jsonl:1: the chat template cannot write .* \(TemplateSyntaxError",
        ),
        (
            STRICT,
            [OPENAI, {"messages": OPENAI["messages"][1:]}],
            True,
            r"jsonl:2: the chat template cannot .*roles must alternate",
        ),
        (
            STRICT,
            [{**SHAREGPT, "system": "s"}],
            None,
            r"jsonl:1: the chat template cannot .*System role not supported\); leave the row",
        ),
        (
            STRICT,
            [{"messages": [{"content": "x"}]}],
            None,
            r"jsonl:1: messages is no conversation; expected \{role, content\}",
        ),
        (
            STRICT,
            [{"messages": [{"role": 5, "content": "x"}]}],
            None,
            r"jsonl:1: a message has the role int, expected a name",
        ),
        (
            STRICT,
            [{"conversations": [{"from": None, "value": "x"}]}],
            None,
            r"jsonl:1: a message is from null; expected human",
        ),
        (
            STRICT,
            [{"messages": [{"role": "user", "content": [{"type": "image"}]}]}],
            None,
            r"jsonl:1: a message holds image, and only text",
        ),
        (
            STRICT,
            [{"messages": [{"role": "user", "content": 5}]}],
            None,
            r"jsonl:1: a message holds int, and only text can be read",
        ),
        (
            STRICT,
            [{"messages": [{"role": "user", "content": "\ud800"}]}],
            None,
            r"jsonl:1: \\ud800 is half of a surrogate pair",
        ),
        (
            talking.tokenizer("{{ 1 // 0 }}"),
            [OPENAI],
            None,
            r"jsonl:1: the chat template cannot .*\(ZeroDivisionError",
        ),
    ],
)
def test_what_cannot_be_written_is_one_line(
    tmp_path: Path,
    tokenizer: Any,
    rows: list[Any],
    choice: Any,
    message: str,
) -> None:
    with pytest.raises(ExciseError, match=message) as error:
        read(file(tmp_path, rows), tokenizer, 20, chat_template=choice)
    assert "\n" not in str(error.value)


def test_plain_text_has_no_turns(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("prose " * 100)
    for source in (
        Source(text=(tmp_path / "a.txt",), chat_template=True),
        Source(stdlib="prose", split="test", chat_template=True),
    ):
        with pytest.raises(
            ExciseError,
            match=r"this is plain text; give this source chat_template: false, or the text as rows",
        ):
            read_windows([source], FREE, length=20, sequences=1, seed=0)
    not_this = Source(text=(tmp_path / "a.txt",), chat_template=False)
    assert len(read_windows([not_this], FREE, length=20, sequences=1, seed=0, chat_template=True)) == 1


def test_a_tokenizer_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever code comes with a model."""

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    tokenizer = tiny.tokenizer()
    monkeypatch.setattr(type(tokenizer), "__call__", broken)
    with pytest.raises(
        ExciseError,
        match=r"chat\.jsonl:1: the tokenizer cannot read this text \(ZeroDivisionError: ZeroDivisionError\)",
    ):
        read(file(tmp_path, [{"text": "x"}]), tokenizer, 20)
