"""Text as people have it: formats, marks, folders, parts of splits, rows without text; what is refused, and
how.
"""

import functools
import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pandas as pd
import pytest
from pydantic import ValidationError

from criteria.text.reading import consecutive, read_windows
from criteria.text.sources import Source
from criteria.text.splits import SplitPart, split_parts
from criteria.text.windows import Windows
from experts.errors import ExciseError
from tests.support import tiny

packed = functools.partial(gzip.compress, mtime=0)  # the same bytes in every process: they name the tests

TOKENIZER = tiny.tokenizer()
TEXTS = [letter * 30 for letter in "abcdef"]
ROWS = [{"text": text} for text in TEXTS]
LINES = "\n".join(map(json.dumps, ROWS))


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(sequences: int = 6, length: int = 30, notes: list[str] | None = None, **source: Any) -> Windows:
    say = (lambda _: None) if notes is None else notes.append
    return read_windows(
        [Source.model_validate(source)], TOKENIZER, length=length, sequences=sequences, seed=0, say=say
    )


def texts(windows: Windows) -> list[str]:
    return [str(TOKENIZER.decode(row)) for row in windows.tokens]


# Formats.


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl", LINES.replace("\n", "\r\n") + "\r\n"),
        ("a.jsonl", LINES.replace("\n", "\n\n")),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("a.ndjson", LINES),
        ("a.json", LINES),
        ("a.json", json.dumps(ROWS)),
        ("a.json", b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).encode()),
        ("a.json", json.dumps(TEXTS)),
        ("a.json", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
        ("a.jsonl", json.dumps(ROWS)),
        ("a.jsonl", "\n".join(map(json.dumps, TEXTS))),
        ("a.jsonl.gz", packed(LINES.encode())),
        ("a.jsonl.gz", packed(b"\xef\xbb\xbf" + LINES.encode())),
        ("a.json.gz", packed(json.dumps(ROWS).encode())),
        ("compressed without saying so.jsonl", packed(LINES.encode())),
    ],
)
def test_rows_of_every_kind(tmp_path: Path, name: str, content: str | bytes) -> None:
    """Under either key, told by name and content."""
    path = write(tmp_path, name, content)
    assert texts(read(jsonl=path)) == TEXTS
    assert texts(read(text=path)) == TEXTS


def test_parquet(tmp_path: Path) -> None:
    pd.DataFrame({"text": TEXTS, "n": range(6)}).to_parquet(tmp_path / "a.parquet", row_group_size=4)
    assert texts(read(jsonl=tmp_path / "a.parquet")) == texts(read(text=tmp_path / "a.parquet")) == TEXTS
    assert read(jsonl=tmp_path / "a.parquet").documents[5] == f"{tmp_path}/a.parquet[5]"
    (tmp_path / "a.parquet").rename(tmp_path / "b.data")
    assert texts(read(jsonl=tmp_path / "b.data")) == TEXTS


def test_one_object_a_file(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        write(tmp_path, f"deep/{number}.json", json.dumps(row, indent=2))
    assert texts(read(jsonl=tmp_path)) == TEXTS


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_plain_text_with_a_mark(tmp_path: Path, pack: Any) -> None:
    """The byte-order mark is no text, and line ends are one sign."""
    path = write(tmp_path, "a.txt", pack(b"\xef\xbb\xbf" + b"ab\r\n" * 30))
    assert texts(read(2, text=path)) == ["ab\n" * 10, "ab\n" * 10]
    assert consecutive(path, TOKENIZER, 30).tokens.tolist() == read(3, text=path).tokens.tolist()


def test_folders(tmp_path: Path) -> None:
    """Every file of a known kind, in the order of the names below the folder; hidden ones and others are
    none.
    """
    write(tmp_path, "b/x.txt", "b" * 30)
    write(tmp_path, "a.jsonl", json.dumps({"text": "a" * 30}))
    write(tmp_path, "c.md", "c" * 30)
    for other in (".hidden.txt", ".git/x.txt", "picture.png", "code.py"):
        write(tmp_path, other, b"\xff\xfe\x00")
    assert texts(read(3, text=tmp_path)) == ["a" * 30, "b" * 30, "c" * 30]
    assert texts(read(1, jsonl=tmp_path)) == ["a" * 30]
    with pytest.raises(
        ExciseError, match=r"b: no file in this folder ends in \.jsonl, \.ndjson, \.json, \.parquet"
    ):
        read(1, jsonl=tmp_path / "b")


def test_several_fields_and_fields_to_choose_from(tmp_path: Path) -> None:
    """Files with differing columns; a null field is left out, an empty one is an empty line."""
    rows = [{"ask": "a" * 20, "more": None, "say": "b" * 9}, {"ask": "c" * 14, "more": "", "say": "d" * 14}]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert texts(read(2, jsonl=path, field=["ask", "more", "say"])) == [
        "a" * 20 + "\n" + "b" * 9,
        "c" * 14 + "\n\n" + "d" * 14,
    ]
    write(tmp_path, "f/1.jsonl", json.dumps({"text": "a" * 30}))
    other = write(tmp_path, "f/2.jsonl", json.dumps({"content": "b" * 30, "n": 1}))
    assert texts(read(2, jsonl=tmp_path / "f", field="text|content")) == ["a" * 30, "b" * 30]
    way = r"name the one to read \(field: content\), or several to choose from \(field: text\|content\)"
    with pytest.raises(
        ExciseError, match=rf"{other}:1: no text in field 'text'; it has \['content', 'n'\]; {way}"
    ):
        read(2, jsonl=tmp_path / "f")


def test_rows_without_text_are_counted_and_said_once(tmp_path: Path) -> None:
    """Null, empty and blank ones; they leave no stray end token behind."""
    rows: list[Any] = [
        *ROWS,
        None,
        {"text": None},
        {"text": ""},
        {"text": " \n"},
        {"messages": []},
        {"messages": None},
    ]
    notes: list[str] = []
    windows = read(3, 62, notes, jsonl=write(tmp_path, "a.json", json.dumps(rows[::-1])))
    assert texts(windows)[0] == "f" * 30 + "<eos>" + "e" * 30 + "<eos>"
    assert notes == ["data (jsonl): 6 of 12 rows that were read are null or empty and were left out"]
    for empty in ([], [None] * 3, [{"text": ""}]):
        with pytest.raises(
            ExciseError,
            match=r"data \(jsonl\): there is no text"
            + (f", its {len(empty)} rows are null" if empty else ""),
        ):
            read(1, jsonl=write(tmp_path, "b.json", json.dumps(empty)))


# Data sets.


def test_local_files_and_folders_as_data_sets(tmp_path: Path) -> None:
    """Splits are found by the names of the files, as `datasets` does; columns may differ between files."""
    write(tmp_path, "d/train-1.jsonl", LINES)
    write(tmp_path, "d/train-2.jsonl", json.dumps({"content": "z" * 30}))
    write(tmp_path, "d/test.jsonl", json.dumps({"text": "t" * 30}))
    folder = str(tmp_path / "d")
    assert texts(read(7, dataset=folder, field="text|content")) == [*TEXTS, "z" * 30]
    assert texts(read(1, dataset=folder, split="test")) == ["t" * 30]
    assert texts(read(1, dataset=f"{folder}/test.jsonl")) == ["t" * 30]
    write(tmp_path, "d/other.txt", "x")
    notes: list[str] = []
    assert texts(read(1, notes=notes, dataset=folder, split="test")) == ["t" * 30]
    assert notes == [f"data (d): 1 files are in no split and are not read (the first is {folder}/other.txt)"]
    with pytest.raises(ExciseError, match=r"data set .*/d: no split 'dev'; it has train, test"):
        read(1, dataset=folder, split="dev")
    with pytest.raises(ExciseError, match=r"train-2\.jsonl:1: no text in field 'text'; it has \['content'\]"):
        read(7, dataset=folder)


def test_data_sets_beside_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of something that lies there is a path, any other is for the hub.

    Labels do not show where it lies.
    """
    write(tmp_path, "d/a.jsonl", LINES)
    found = Source(dataset="d").anchored(tmp_path)
    assert (found.dataset, found.label) == (str(tmp_path / "d"), "d")
    assert Source(dataset="org/name").anchored(tmp_path).dataset == "org/name"
    monkeypatch.setenv("DATA", str(tmp_path))
    assert texts(read(dataset=Source(dataset="$DATA/d/a.jsonl").anchored(tmp_path).dataset)) == TEXTS


def test_other_local_data_sets(tmp_path: Path) -> None:
    pd.DataFrame({"text": TEXTS}).to_csv(tmp_path / "a.csv")
    assert texts(read(dataset=str(tmp_path / "a.csv"))) == TEXTS
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert texts(read(dataset=str(tmp_path / "saved"))) == TEXTS
    assert texts(read(2, dataset=str(tmp_path / "saved"), split="train[-2:]")) == TEXTS[4:]
    both = datasets.DatasetDict({name: datasets.Dataset.from_list(ROWS[:2]) for name in ("train", "dev")})
    both.save_to_disk(str(tmp_path / "both"))
    assert texts(read(4, dataset=str(tmp_path / "both"), split="train+dev")) == TEXTS[:2] * 2
    with pytest.raises(ExciseError, match=r"both: no split 'test'; it has train, dev"):
        read(dataset=str(tmp_path / "both"), split="test")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_parts_of_a_split(tmp_path: Path, name: str) -> None:
    """Rows are counted as they stand, also those without text; `documents` bounds what a part does not."""
    frame = pd.DataFrame({"text": [*TEXTS[:3], "", *TEXTS[3:]]})
    path = write(tmp_path, name, "")
    kinds = {"a.jsonl": ("records", True), "a.json": ("records", False)}
    if name in kinds:
        frame.to_json(path, orient=kinds[name][0], lines=kinds[name][1])
    else:
        frame.to_parquet(path, row_group_size=2)
    assert texts(read(2, dataset=str(path), split="train[:2]")) == TEXTS[:2]
    assert texts(read(2, dataset=str(path), split="train[2:5]")) == TEXTS[2:4]
    assert texts(read(2, dataset=str(path), split="train[5:]")) == TEXTS[4:]
    assert texts(read(4, dataset=str(path), documents=5)) == TEXTS[:4]
    assert texts(read(2, dataset=str(path), split="train[1:]", documents=2)) == TEXTS[1:3]
    assert texts(read(3, dataset=str(path), split="train[5:7]+train[:1]")) == [*TEXTS[4:], TEXTS[0]]
    with pytest.raises(
        ExciseError, match=r"train\[:10%\] needs the number of rows of 'train', .*like train\[:200\]"
    ):
        read(dataset=str(path), split="train[:10%]")


def test_parts_are_those_of_the_library() -> None:
    """Shares and ends that count from the back, against `datasets` itself."""
    sizes = {"train": 1003, "dev": 7}
    for spec in (
        "train",
        "train[:200]",
        "dev[3:]",
        "train[10%:33%]",
        "train[-5:]",
        "train[:-3]",
        "train[-10%:]+dev[:50%]",
        "dev[:400]",
    ):
        expected = datasets.ReadInstruction.from_spec(spec).to_absolute(sizes)
        found = split_parts(spec, lambda: sizes)
        length = [sizes[part.name] for part in found]
        ends = [min(one.stop or size, size) for one, size in zip(found, length, strict=True)]
        theirs = [sizes[one.splitname] if one.to is None else one.to for one in expected]
        assert ends == theirs
        assert [(one.name, one.begin) for one in found] == [
            (one.splitname, one.from_ or 0) for one in expected
        ]
    assert split_parts("train[:5]", lambda: pytest.fail("not needed")) == [SplitPart("train", 0, 5)]
    for wrong in ("train[", "train[:200", "train[a:b]", "train[5]", "[:3]"):
        with pytest.raises(ValidationError, match=r"is not one; write train, train\[:200\]"):
            Source(dataset="x", split=wrong)


class Streamed:
    """A data set as `datasets` streams it."""

    def __init__(self, rows: list[Any], begin: int = 0, stop: int | None = None) -> None:
        self.rows, self.begin, self.stop = rows, begin, stop

    def skip(self, count: int) -> "Streamed":
        return Streamed(self.rows, self.begin + count)

    def take(self, count: int) -> "Streamed":
        return Streamed(self.rows, self.begin, self.begin + count)

    def __iter__(self) -> Any:
        for row in self.rows[self.begin : self.stop]:
            if isinstance(row, Exception):
                raise row
            yield row


@pytest.mark.parametrize(
    "error",
    [ConnectionError(), RuntimeError(""), KeyError("text"), TypeError("\n\n"), UnicodeError("odd\nlong")],
)
def test_hub_data_sets(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """No more rows than are asked for are fetched; whatever the library raises, empty or not, is one line."""
    asked: list[Any] = []

    def load(*arguments: Any, **options: Any) -> Streamed:
        asked.append((*arguments, options["split"]))
        return Streamed([*ROWS, error])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert texts(read(dataset="org/name", split="train[:6]")) == TEXTS
    assert texts(read(dataset="org/name", documents=6, config="c")) == TEXTS
    assert asked == [("org/name", None, "train"), ("org/name", "c", "train")]
    assert read(1, dataset="org/name", split="train[3:6]").documents == ("org/name#5",)
    with pytest.raises(ExciseError, match=r"data set org/name: cannot be read \([^\n]+\)$"):
        read(dataset="org/name")


def test_shares_of_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hub tells the number of rows."""
    told = SimpleNamespace(info=SimpleNamespace(splits={"train": SimpleNamespace(num_examples=6)}))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_: told)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Streamed(ROWS))
    assert texts(read(3, dataset="org/name", split="train[:50%]")) == TEXTS[:3]
    assert texts(read(2, dataset="org/name", split="train[-2:]")) == TEXTS[4:]
    with pytest.raises(
        ExciseError, match="split dev\\[:50%\\] needs the number of rows of 'dev', which is not told"
    ):
        read(dataset="org/name", split="dev[:50%]")


# What is refused.


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": "\\ud83d"}', r"a\.jsonl:2: \\ud83d is half of a surrogate pair"),
        ("a.jsonl", '{"text": "a"}\n{"text": 5}', r"a\.jsonl:2: field 'text' holds int, expected text"),
        ("a.jsonl", '{"text": ["a"]}', r"a\.jsonl:1: field 'text' holds list, expected text"),
        (
            "a.jsonl",
            '{"text": "a"}\n7',
            r"a\.jsonl:2: no text in field 'text'; it has int, expected an object or a text",
        ),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"', r"a\.jsonl:2: not a JSON line \(Expecting ',' delimiter"),
        ("a.jsonl", "[" * 10**5, r"a\.jsonl: not valid JSON \(.*recursion"),
        ("a.jsonl", '{"text": "a"}\n' + "[" * 10**5, r"a\.jsonl:2: not a JSON line \(.*recursion"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"n": 1' + "0" * 5000 + "}",
            r"a\.jsonl:2: not a JSON line \(Exceeds the limit",
        ),
        ("a.jsonl", '{"text": NaN}', r"a\.jsonl:1: field 'text' holds float, expected text"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"messages": "a"}',
            r"a\.jsonl:2: messages is no conversation; expected \{role, content\}",
        ),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe4"}', r"a\.jsonl: not UTF-8 text \(byte 24\)"),
        ("a.json", b'[{"text": "a"}, {"text": "\xe4"}]', r"a\.json: not UTF-8 text \(byte 26\)"),
        ("a.json", '[{"text": "a"}, {"text": 5}]', r"a\.json\[1\]: field 'text' holds int"),
        (
            "a.json",
            '[{"text": "a"} {"text": "b"}]',
            r"a\.json: not valid JSON \(no comma after an element, near character 15\)",
        ),
        ("a.json", '[{"text": "a"},]', r"a\.json: not valid JSON \(no value between , and \]"),
        ("a.json", '[{"text": "a"}', r"a\.json: not valid JSON \(the array does not end"),
        ("a.json", '[{"text": "a"}] x', r"a\.json: not valid JSON \(the file goes on after the array"),
        (
            "a.json",
            '{\n"data": [{"text": "a"}]}',
            r"a\.json\[0\]: no text in field 'text'; it has \['data'\]",
        ),
        ("a.jsonl.gz", packed(LINES.encode())[:-9], r"a\.jsonl\.gz: damaged or incomplete gzip file"),
        ("a.txt.gz", packed(LINES.encode()) + b"rest", r"a\.txt\.gz: damaged or incomplete gzip file"),
        (
            "a.txt",
            "a".encode("utf-16"),
            r"a\.txt: UTF-16 or UTF-32, not UTF-8 text; convert it first \(iconv -t UTF-8\)",
        ),
        ("a.txt", b"\x28\xb5\x2f\xfd123", r"a\.txt: packed with Zstandard; unpack it first"),
        ("a.parquet", LINES, r"a\.parquet: not a parquet file"),
        ("a.parquet", b"PAR1" + b"\x00" * 50, r"a\.parquet: not a readable parquet file"),
        ("a.txt", "", "there is no text; add some"),
        ("a.jsonl", "\n \n", "there is no text; add some"),
    ],
)
def test_bad_files_are_one_true_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(ExciseError, match=message):
        read(1, 4, text=path)


def test_files_that_are_none(tmp_path: Path) -> None:
    pd.DataFrame({"content": TEXTS, "n": range(6)}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        ExciseError, match=r"a\.parquet: no text in field 'text'; it has \['content', 'n'\]; name the one"
    ):
        read(1, jsonl=tmp_path / "a.parquet")
    pd.DataFrame({"text": [b"\xff"]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ExciseError, match=r"b\.parquet\[0\]: field 'text' holds bytes"):
        read(1, jsonl=tmp_path / "b.parquet")
    with pytest.raises(ExciseError, match=r"/dev/null: not a regular file"):
        read(1, text="/dev/null")
    with pytest.raises(ExciseError, match=r"nothing\.jsonl: No such file or directory"):
        read(1, jsonl=tmp_path / "nothing.jsonl")
    with pytest.raises(ExciseError, match=r"nowhere: cannot be read \(|nowhere.*: cannot be read \("):
        read(1, dataset=str(tmp_path / "nowhere"))
    with pytest.raises(
        ExciseError, match="1 windows for 2 sources, which give one each at least; raise sequences"
    ):
        read_windows(
            [Source(stdlib=kind, split="test") for kind in ("code", "prose")],
            TOKENIZER,
            length=20,
            sequences=1,
            seed=0,
        )


@pytest.mark.parametrize("field", ["text|", "|", ""])
def test_fields_need_names(field: str) -> None:
    with pytest.raises(ValidationError, match="names nothing"):
        Source.model_validate({"text": "a.txt", "field": field})
