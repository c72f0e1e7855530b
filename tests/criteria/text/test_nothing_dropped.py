"""Text that was dropped, repeated or chosen by the wrong thing: each case once gave windows
without a word.
"""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from criteria.text.reading import read_windows
from criteria.text.rows import RowText
from criteria.text.sources import Source
from criteria.text.windows import Windows
from experts.errors import ExciseError
from tests.support import talking, tiny

FREE = talking.tokenizer(talking.FREE)


def read(sequences: int = 6, length: int = 30, notes: list[str] | None = None, **source: Any) -> Windows:
    say = (lambda _: None) if notes is None else notes.append
    return read_windows(
        [Source.model_validate(source)], tiny.tokenizer(), length=length, sequences=sequences, seed=0, say=say
    )


def written(row: Any, choice: bool | None = None, **source: Any) -> str:
    piece = RowText(Source.model_validate({"jsonl": "x", **source}), FREE, choice, lambda _: None)("row", row)
    return piece.text if piece else ""


def many(path: Path, rows: int = 400, width: int = 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "\n".join(json.dumps({"text": f"{row} {'x' * (row % width)} {row * 7919}"}) for row in range(rows))
    )
    return path


# What is chosen.


def test_a_seed_chooses_the_same_rows_wherever_a_data_set_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are kept in a temporary file are cut into cells by their texts, not by the names of their
    documents.
    """
    monkeypatch.setattr("criteria.text.readers_of_sources.SMALL", 2**10)
    monkeypatch.setattr("criteria.text.sampling.SMALL", 2**10)
    short, long = many(tmp_path / "a" / "d.jsonl"), many(tmp_path / ("a much longer name " * 5) / "d.jsonl")
    assert read(dataset=str(short), documents=400).hash == read(dataset=str(long), documents=400).hash


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            {"jsonl": "a", "split": "train[:4]"},
            "split belongs to dataset and stdlib; a file of rows can be given as dataset",
        ),
        (
            {"jsonl": "a", "documents": 4},
            "documents belongs to dataset; a file of rows can be given as dataset",
        ),
        ({"text": "a", "config": "en"}, "config belongs to dataset"),
        ({"jsonl": "a", "separator": "x"}, "separator belongs to text"),
        ({"stdlib": "code", "split": "test", "separator": "x"}, "separator belongs to text"),
    ],
)
def test_keys_of_another_kind_are_not_passed_over(source: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Source.model_validate(source)


def test_a_text_in_two_places(tmp_path: Path) -> None:
    """One file under two names is read once; the same text in two files is said."""
    text, notes = tmp_path / "a.txt", []
    text.write_text(" ".join(map(str, range(300))))
    (tmp_path / "b.txt").symlink_to(text)
    once = read(text=[str(text)])
    assert read(text=[str(text), str(tmp_path / "." / "b.txt")], notes=notes).hash == once.hash
    assert notes == [f"data (text): {tmp_path / 'b.txt'} is named twice, and read once"]
    shutil.copy(text, tmp_path / "c.txt")
    notes.clear()
    whole = len(text.read_text()) // 30
    read(2 * whole, text=[str(text), str(tmp_path / "c.txt")], notes=notes)
    assert notes[0].startswith(
        f"data: {whole} of {2 * whole} windows hold the same text as "
        f"another one (the first in {tmp_path / 'c.txt'}"
    )


def test_folders_behind_links_are_read_and_circles_end(tmp_path: Path) -> None:
    real, folder = tmp_path / "elsewhere", tmp_path / "data"
    real.mkdir()
    folder.mkdir()
    (real / "a.txt").write_text("a" * 200)
    (folder / "linked").symlink_to(real)
    (real / "back").symlink_to(folder)
    assert set(read(2, text=[str(folder)]).documents) == {str(folder / "linked" / "a.txt")}


# What is read.


@pytest.mark.parametrize(
    ("row", "field", "expected"),
    [
        (
            {
                "prompt": [{"role": "user", "content": "q"}],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            ["prompt", "completion"],
            "<user>q<assistant>a<eos>",
        ),
        (
            {"question": "q", "chosen": [{"role": "assistant", "content": "a"}]},
            ["question", "chosen"],
            "<user>q<assistant>a<eos>",
        ),
        (
            {"prompt": [{"role": "user", "content": "q"}], "answer": "a"},
            ["prompt", "answer"],
            "<user>q<assistant>a<eos>",
        ),
        (
            {"messages": [{"role": "human", "value": "q"}, {"from": "gpt", "text": "a"}]},
            ["text"],
            "<user>q<assistant>a<eos>",
        ),
        ({"text": "", "messages": [{"role": "user", "content": "q"}]}, ["text"], "<user>q<eos>"),
    ],
)
def test_no_part_of_a_conversation_is_dropped(row: Any, field: list[str], expected: str) -> None:
    assert written(row, field=field) == expected


def test_the_system_text_of_questions_and_answers() -> None:
    row = {"q": "x", "a": "y", "system": "s"}
    assert written(row, True, field=["q", "a"]) == "<system>s<user>x<assistant>y<eos>"


@pytest.mark.parametrize("turn", [{"role": "user", "parts": ["q"]}, {"from": "human"}])
def test_a_message_without_content_is_refused(turn: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": [turn]}))
    with pytest.raises(ExciseError, match=r"a\.jsonl:1: a message has no content; it has (from|parts, role)"):
        read_windows([Source(jsonl=(path,))], FREE, length=30, sequences=1, seed=0)


def test_windows_of_several_special_tokens_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("<pad><eos>" * 60)
    with pytest.raises(ExciseError, match=r"2 of 2 windows hold nothing but special tokens \(<eos>, <pad>\)"):
        read(2, text=[str(path)])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
            "only a pointer of Git LFS; fetch the file itself",
        ),
        (
            b"text\0and more" * 20,
            r"no text, it holds a zero byte \(at byte 4\); is it packed, or in UTF-16\?",
        ),
    ],
)
def test_what_is_no_text(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(ExciseError, match=said):
        read(text=[str(path)])


def test_a_text_that_every_row_repeats_is_not_read_whole(tmp_path: Path) -> None:
    """Parquet stores it once: 40 kB of file are 60 MB of text, and eight windows cost eight windows."""
    path = tmp_path / "a.parquet"
    pd.DataFrame({"system": ["s" * 60_000] * 1000, "text": [f"row {row}" for row in range(1000)]}).to_parquet(
        path
    )
    assert path.stat().st_size < 200_000
    read: list[int] = []

    class Counting(type(tiny.tokenizer())):  # type: ignore[misc]
        def __call__(self, text: str, **options: Any) -> Any:
            read.append(len(text))
            return super().__call__(text, **options)

    tokenizer = tiny.tokenizer()
    tokenizer.__class__ = Counting
    source = Source.model_validate({"jsonl": path, "field": ["system", "text"]})
    assert len(read_windows([source], tokenizer, length=64, sequences=8, seed=0)) == 8
    assert sum(read) < 2**20


@pytest.mark.parametrize("name", ["a.csv.gz", "a.TXT.GZ"])
def test_packed_tables_as_data_sets(name: str, tmp_path: Path) -> None:
    with gzip.open(tmp_path / name, "wt") as file:
        file.write("text\n" + "\n".join(f"row {row} of some words" for row in range(60)))
    assert len(read(4, dataset=str(tmp_path / name))) == 4
