"""Whatever a file holds: windows, or one line that says why not; the same twice, and never
another exception.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from criteria.text.readers.json_values import Values
from criteria.text.readers.storage import Data
from criteria.text.reading import consecutive, read_windows
from criteria.text.sources import Source
from criteria.text.windows import Windows
from experts.errors import ExciseError
from tests.support import talking, tiny

PLAIN, CHAT = tiny.tokenizer(), talking.tokenizer(talking.STRICT)
FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Values as files hold them: numbers where text is meant, halves of surrogates, nothing, too deep, not a
# number.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.just(10**400),
    st.text(max_size=60),
    st.just("\ud83d"),
    st.just("word " * 30),
)
KEYS = st.sampled_from(
    [
        "text",
        "content",
        "messages",
        "conversations",
        "role",
        "from",
        "value",
        "type",
        "tools",
        "system",
        "tool_calls",
        "",
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
SENDERS = st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt"])
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": SENDERS, "content": SCALARS | VALUES})
    | st.fixed_dictionaries({"from": SENDERS, "value": SCALARS}),
    max_size=4,
)
ROWS = st.lists(
    VALUES | st.fixed_dictionaries({"messages": MESSAGES}) | st.fixed_dictionaries({"text": SCALARS}),
    max_size=6,
)
NAMES = st.sampled_from(
    ["a.txt", "a.jsonl", "a.json", "a.ndjson", "a.jsonl.gz", "a.json.gz", "a.parquet", "a"]
)


def outcome(**source: Any) -> Windows | str:
    """Windows, or the one line."""
    found: list[Windows | str] = []
    for _ in range(2):
        try:
            made = Source.model_validate({"field": "text|content", **source})
            found.append(read_windows([made], CHAT, length=16, sequences=2, seed=0, say=lambda _: None))
        except ExciseError as error:
            assert str(error)
            assert "\n" not in str(error)
            found.append(str(error))
    first, second = (one if isinstance(one, str) else one.hash for one in found)
    assert first == second
    if isinstance(found[0], Windows):
        assert found[0].tokens.shape == (2, 16)
        assert (found[0].tokens[:, 0] == CHAT.bos_token_id).all()
    return found[0]


@FUZZ
@given(
    NAMES,
    st.sampled_from(["text", "jsonl", "dataset"]),
    st.binary(max_size=400),
    st.booleans(),
    st.booleans(),
)
def test_any_bytes(tmp_path: Path, name: str, key: str, content: bytes, packed: bool, cut: bool) -> None:
    raw = gzip.compress(content, mtime=0) if packed else content
    (tmp_path / name).write_bytes(raw[: len(raw) * 2 // 3] if cut else raw)
    outcome(**{key: str(tmp_path / name)})


@FUZZ
@given(
    NAMES,
    st.sampled_from(["text", "jsonl", "dataset"]),
    ROWS,
    st.sampled_from(["lines", "array", "pretty"]),
    st.sampled_from([None, True, False]),
)
def test_any_rows(
    tmp_path: Path, name: str, key: str, rows: list[Any], way: str, choice: bool | None
) -> None:
    text = json.dumps(rows, indent=1 if way == "pretty" else None)
    text = "\n".join(map(json.dumps, rows)) if way == "lines" else text
    raw = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw, mtime=0) if name.endswith(".gz") else raw)
    outcome(**{key: str(tmp_path / name)}, chat_template=choice)


@FUZZ
@given(st.text(max_size=300), st.sampled_from(["", "\n", "^#", "a*", "$", r"(?=\s)", r"\Z|x"]), st.booleans())
def test_any_text(tmp_path: Path, text: str, separator: str, mark: bool) -> None:
    """Also with separators that match nothing, or everywhere."""
    path = tmp_path / "a.txt"
    assume(text.isascii() or not any(0xD800 <= ord(sign) < 0xE000 for sign in text))
    path.write_bytes(b"\xef\xbb\xbf" * mark + text.encode())
    outcome(text=path, separator=separator)
    try:
        consecutive(path, PLAIN, 8, say=lambda _: None)
    except ExciseError as error:
        assert "\n" not in str(error)


@settings(FUZZ, max_examples=60, derandomize=True)
@given(st.lists(st.integers(0, 400), max_size=6), st.binary(min_size=1, max_size=6))
def test_damaged_parquet(tmp_path: Path, places: list[int], signs: bytes) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["word " * 9, None, "", "é" * 40]}), path)
    raw = bytearray(path.read_bytes())
    for place, sign in zip(places, signs, strict=False):
        raw[place % len(raw)] = sign
    path.write_bytes(bytes(raw))
    outcome(jsonl=path)


@settings(FUZZ, max_examples=60)
@given(
    st.lists(
        st.sampled_from(
            ["f.jsonl", "f.txt", "g/h.json", "broken.jsonl", "none.parquet", "empty.txt", "dir.jsonl/"]
        ),
        unique=True,
    )
)
def test_any_folder(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    """Folders in place of files, broken links, empty and damaged files among good ones."""
    folder = tmp_path_factory.mktemp("folder")
    contents = {
        "f.jsonl": '{"text": "abc abc abc abc abc abc"}',
        "f.txt": "plain " * 20,
        "g/h.json": '["array ", "' + "x" * 90 + '"]',
    }
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "broken.jsonl":
            path.symlink_to(folder / "nowhere")
        elif name.endswith("/"):
            path.mkdir()
        else:
            path.write_text(contents.get(name, ""))
    for key in ("text", "jsonl"):
        outcome(**{key: str(folder)})


def test_folders_as_data_sets(tmp_path: Path) -> None:
    for name, content in {"a.jsonl": "", "b.jsonl": "{", "c.parquet": "", "d.txt": "\xff"}.items():
        (tmp_path / name).write_text(content)
        outcome(dataset=str(tmp_path))
    outcome(dataset=str(tmp_path), split="dev[:10%]")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    path.write_text("x" * 99)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert outcome(text=path) == f"{path}: Permission denied"


def test_a_file_that_vanishes_or_shrinks(tmp_path: Path) -> None:
    """Between looking at it and reading it."""
    path = tmp_path / "a.txt"
    path.write_text("x" * 99)
    data = Data(path)
    path.unlink()
    with pytest.raises(ExciseError, match=r"a\.txt: No such file or directory"):
        data.text(0, 9)
    path.write_text("")
    assert data.text(0, 9) == ""


@FUZZ
@given(st.lists(VALUES, max_size=8), st.integers(1, 40), st.sampled_from([None, 1]))
def test_arrays_are_read_step_by_step(tmp_path: Path, rows: list[Any], step: int, indent: int | None) -> None:
    """The same values as json.loads gives, in steps of any size."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=True))
    found = [value for _, value in Values(Data(path), step)]
    np.testing.assert_equal(found, json.loads(path.read_text()))
