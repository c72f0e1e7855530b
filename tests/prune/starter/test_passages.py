"""One text as two: nothing is lost, nothing stands in both, and a passage is a document."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experts.errors import ExciseError
from prune.starter.passages import BREAK, SEPARATOR, check_text, divided, passages

LINES = st.lists(st.sampled_from(["one\n", "two three\n", "\n", "  \n", "four\n"]), max_size=60)


@given(lines=LINES, size=st.integers(1, 40))
def test_passages_hold_every_line_once(lines: list[str], size: int) -> None:
    cut = list(passages(lines, size))
    words = [line.split() for line in lines if line.strip()]
    assert [line.split() for passage in cut for line in passage.splitlines() if line.strip()] == words
    assert all(len(passage.encode()) >= size - 1 for passage in cut[:-1])
    assert not any(BREAK in passage for passage in cut)


def test_one_long_paragraph_is_cut_between_lines() -> None:
    cut = list(passages([f"line {number}\n" for number in range(100)], 50))
    assert len(cut) > 3


def test_parts_are_disjoint(tmp_path: Path) -> None:
    paragraphs = [f"paragraph {number} " + "word " * 100 for number in range(90)]
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(paragraphs))
    seen, held_out = divided(file, tmp_path / "text")
    parts = [set(_passages(source.text[0])) for source in (seen, held_out)]
    assert not parts[0] & parts[1]
    text = "".join(source.text[0].read_text() for source in (seen, held_out))
    assert sorted(re.findall(r"paragraph (\d+)", text), key=int) == [str(number) for number in range(90)]
    assert len(parts[0]) >= 50
    assert len(parts[1]) >= 25
    assert seen.separator == SEPARATOR


def _passages(file: Path) -> list[str]:
    return [text for text in re.split(SEPARATOR, file.read_text()) if text.strip()]


def test_again_the_same(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(f"{number} " * 300 for number in range(30)))
    first = [source.text[0].read_bytes() for source in divided(file, tmp_path / "text")]
    assert first == [source.text[0].read_bytes() for source in divided(file, tmp_path / "text")]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "text.txt.gz", "absent.txt", "folder"])
def test_no_plain_text(name: str, tmp_path: Path) -> None:
    if name == "folder":
        (tmp_path / name).mkdir()
    elif name != "absent.txt":
        (tmp_path / name).write_text("x")
    with pytest.raises(ExciseError, match="--text"):
        check_text(tmp_path / name)


def test_too_short_before_anything_is_written(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("short")
    with pytest.raises(ExciseError, match="take a longer text"):
        check_text(file)


def test_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes(b"caf\xe9\n\n" * 2000)
    with pytest.raises(ExciseError, match="convert it to UTF-8"):
        divided(file, tmp_path / "text")
    assert not (tmp_path / "text").exists()
