"""Windows: cutting, packing, seeds, domains, overlap, and bad text."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from criteria.text.disjoint import check_disjoint, repeated_windows
from criteria.text.reading import read_windows
from criteria.text.sources import Source
from criteria.text.standard_library import documents, split_of
from criteria.text.windows import Windows
from experts.errors import ExciseError
from tests.support import tiny

TOKENIZER = tiny.tokenizer()


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def text_of(windows: Windows, row: int) -> str:
    return str(TOKENIZER.decode(windows.tokens[row]))


def test_long_documents_are_cut_and_short_ones_joined(tmp_path: Path) -> None:
    long = write(tmp_path, "long.txt", "a" * 50 + "b" * 50 + "c" * 20)
    windows = read_windows([Source(text=(long,))], TOKENIZER, length=50, sequences=2, seed=0)
    assert [text_of(windows, row) for row in (0, 1)] == ["a" * 50, "b" * 50]
    lines = write(
        tmp_path, "lines.jsonl", "\n".join(json.dumps({"text": letter * 20}) for letter in "abcdef")
    )
    packed = read_windows([Source(jsonl=(lines,))], TOKENIZER, length=50, sequences=2, seed=0)
    assert text_of(packed, 0) == "a" * 20 + "<eos>" + "b" * 20 + "<eos>" + "c" * 8
    assert packed.documents == (f"{lines}:1 … {lines}:3", f"{lines}:4 … {lines}:6")


def test_json_lines_are_split_at_newlines_only(tmp_path: Path) -> None:
    lines = write(tmp_path, "lines.jsonl", json.dumps({"text": "a\u2028b" * 20}, ensure_ascii=False) + "\n")
    assert len(read_windows([Source(jsonl=(lines,))], TOKENIZER, length=50, sequences=1, seed=0)) == 1


def test_separator_starts_documents(tmp_path: Path) -> None:
    wiki = write(tmp_path, "wiki.txt", " = One = \n" + "a" * 60 + "\n = Two = \n" + "b" * 60)
    windows = read_windows(
        [Source(text=(wiki,), separator="^ = [^=]")], TOKENIZER, length=40, sequences=2, seed=0
    )
    assert len(windows.documents) == 2
    assert text_of(windows, 0).startswith(" = One")


def test_sources_get_equal_shares_and_domains(tmp_path: Path) -> None:
    first, second = write(tmp_path, "a.txt", "a" * 500), write(tmp_path, "b.txt", "b" * 500)
    sources = [Source(text=(first,), domain="x"), Source(text=(second,), domain="y")]
    windows = read_windows(sources, TOKENIZER, length=50, sequences=5, seed=0)
    assert windows.domains == ("x", "y")
    assert windows.domain.tolist() == [0, 0, 0, 1, 1]


def test_the_seed_decides(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    file = write(tmp_path, "a.txt", "".join(chr(97 + i) for i in rng.integers(0, 26, 5000)))
    hashes = [
        read_windows([Source(text=(file,))], TOKENIZER, length=50, sequences=10, seed=seed).hash
        for seed in (0, 0, 1)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("shift", [0, 7, 24])
def test_overlap_is_found_at_any_offset(shift: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 256, 1000)

    def cut(start: int, count: int) -> Windows:
        rows = tokens[start : start + count * 50].reshape(count, 50)
        return Windows(
            rows, np.ones_like(rows, bool), np.zeros(count, int), np.zeros(count, int), ("doc",), ("x",)
        )

    assert repeated_windows(cut(0, 8).tokens, cut(200 + shift, 2)) == [0, 1]
    with pytest.raises(ExciseError, match=r"overlap: 2 of 2 validation windows \(the first in doc\)"):
        check_disjoint(cut(0, 8), cut(200 + shift, 2))
    check_disjoint(cut(0, 8), cut(450, 4))


@pytest.mark.parametrize(
    ("content", "ask", "message"),
    [
        (b"short", (50, 1), "shorter than one window of 50 tokens"),
        (b"a" * 120, (50, 4), "4 windows of 50 tokens asked, the text has 2; lower sequences or length"),
        (b"good \xff\xfe bad", (5, 1), r"bad\.txt: not UTF-8 text \(byte 5\)"),
    ],
)
def test_bad_text_is_one_clear_line(
    tmp_path: Path, content: bytes, ask: tuple[int, int], message: str
) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(ExciseError, match=message):
        read_windows(
            [Source(text=(tmp_path / "bad.txt",))], TOKENIZER, length=ask[0], sequences=ask[1], seed=0
        )


def test_bad_jsonl_names_the_line(tmp_path: Path) -> None:
    file = write(tmp_path, "x.jsonl", '{"text": "fine"}\n{"question": "q"}\n')
    with pytest.raises(ExciseError, match=r"x\.jsonl:2: no text in field 'text'; it has \['question'\]"):
        read_windows([Source(jsonl=(file,))], TOKENIZER, length=4, sequences=1, seed=0)
    with pytest.raises(ExciseError, match=r"missing\.txt: No such file"):
        read_windows([Source(text=(tmp_path / "missing.txt",))], TOKENIZER, length=4, sequences=1, seed=0)


@pytest.mark.slow
def test_standard_library_splits_by_file() -> None:
    names = {
        split: {name for domain in ("code", "prose") for name, _ in documents(domain, split)}
        for split in ("train", "calibration", "test")
    }
    assert all(split_of(name) == split for split, found in names.items() for name in found)
    assert len(names["train"]) > len(names["calibration"]) + len(names["test"])
    assert min(map(len, names.values())) > 20


def test_code_has_no_docstrings_and_prose_is_them() -> None:
    code = dict(documents("code", "test"))
    prose = dict(documents("prose", "test"))
    both = sorted(code.keys() & prose.keys())
    assert both
    for name in both:
        first = prose[name].splitlines()[0]
        assert len(first) < 20 or first not in code[name]


@pytest.mark.slow
def test_shared_text(shared: Path) -> None:
    wiki = shared / "data" / "wikitext-2"
    source = {"separator": r"^ = [^=\n]+ = $"}
    calibration = read_windows(
        [Source(text=(wiki / "valid.txt",), **source)], TOKENIZER, length=256, sequences=64, seed=0
    )
    validation = read_windows(
        [Source(text=(wiki / "test.txt",), **source)], TOKENIZER, length=256, sequences=64, seed=0
    )
    assert len(validation.documents) > 20
    check_disjoint(calibration, validation)
    with pytest.raises(ExciseError, match="overlap"):
        check_disjoint(calibration, calibration.select(np.array([5])))


def five_windows() -> Windows:
    """Five windows of three tokens; the last one ends in padding, the second begins with it."""
    mask = np.ones((5, 3), dtype=bool)
    mask[4, 2] = mask[1, 0] = False
    document = np.array([0, 0, 2, 2, 1])
    return Windows(np.arange(15).reshape(5, 3), mask, document, np.zeros(5, int), ("a", "b", "c"), ("text",))


def test_positions_with_a_next_token() -> None:
    assert five_windows().readable.tolist() == [
        [True, True],
        [False, True],
        *[[True, True]] * 2,
        [True, False],
    ]


@pytest.mark.parametrize(
    ("count", "rows"), [(1, [0]), (2, [0, 4]), (3, [0, 2, 4]), (4, [0, 1, 3, 4]), (5, [0, 1, 2, 3, 4])]
)
def test_windows_are_spread(count: int, rows: list[int]) -> None:
    assert five_windows().spread(count).tolist() == rows


def test_no_more_windows_than_there_are() -> None:
    assert five_windows().spread(99).tolist() == [0, 1, 2, 3, 4]


def test_tokens_as_a_tensor() -> None:
    tokens = five_windows().tensor("cpu")
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == five_windows().tokens.tolist()


def test_summary_counts_the_documents_that_were_used() -> None:
    chosen = five_windows().select(np.array([0, 2, 3]))
    assert chosen.summary() == {
        "windows": 3,
        "length": 3,
        "documents": 2,
        "domains": ["text"],
        "hash": chosen.hash,
    }


def test_windows_need_no_torch() -> None:
    code = "import sys, criteria.text.windows; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
