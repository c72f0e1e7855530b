"""Large texts: what is read follows the number of windows; documents, counts and seeds hold as of
small ones.
"""

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from criteria.text.cutting import Cutter
from criteria.text.readers.json_lines import JsonLines
from criteria.text.readers.json_values import JsonValues
from criteria.text.readers.parquet import Parquet
from criteria.text.readers.pieces import Piece, Reader, Shelf
from criteria.text.readers.plain import PlainText
from criteria.text.readers_of_sources import source_reader
from criteria.text.reading import consecutive, read_windows
from criteria.text.rows import RowText
from criteria.text.sampling import Sampler, all_pieces
from criteria.text.sources import Source
from criteria.text.windows import Windows
from experts.errors import ExciseError
from tests.support import tiny

BYTES = tiny.tokenizer()  # a token a byte
CELL = 4096


def word(number: int) -> str:
    return f"w{number:05d}"


def words_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word of six letters: quick on long texts."""
    vocabulary = {"<unk>": 0, "<eos>": 1, **{word(number): number + 2 for number in range(10**4)}}
    inner = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>")


WORDS = words_tokenizer()


def words(count: int, seed: int = 0) -> str:
    return " ".join(map(word, np.random.default_rng(seed).integers(0, 10**4, count)))


def rows_of(count: int, length: int = 120) -> list[str]:
    return [f"row {number}: {words(length // 7, number)}" for number in range(count)]


def text_of(source: Source) -> RowText:
    return RowText(source, BYTES, None, lambda _: None)


def in_cells(reader: Reader, size: int = CELL) -> list[tuple[int, list[Piece]]]:
    return list(reader.read(size, range(reader.cells(size))))


def documents(pieces: Sequence[Piece]) -> list[str]:
    """The documents that pieces make up."""
    found: list[str] = []
    for piece in pieces:
        found.append(piece.text) if piece.begins or not found else found.append(found.pop() + piece.text)
    return found


# Cells.


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="ab \t\n\r\n=é漢😀", min_size=1, max_size=300), st.integers(30, 60), st.booleans())
def test_cells_hold_the_text_and_its_documents(tmp_path: Path, part: str, times: int, packed: bool) -> None:
    """All of it, once; a document has one name in all its cells; compressed or not."""
    text = "".join(f"{part}{number}" for number in range(times * 4))
    path = tmp_path / "a.txt"
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if packed else text.encode())
    as_read = text.replace("\r\n", "\n").replace("\r", "\n")
    for separator in ("", "^=", "=\n"):
        pieces = [piece for _, found in in_cells(PlainText(path, separator)) for piece in found]
        starts = (
            [match.start() for match in re.finditer(separator, as_read, re.MULTILINE)] if separator else []
        )
        bounds = [0, *(start for start in starts if start), len(as_read)]
        expected = [as_read[a:b] for a, b in pairwise(bounds)]
        assert list(filter(str.strip, documents(pieces))) == list(filter(str.strip, expected))
        names = [name for name, _ in groupby(piece.document for piece in pieces)]
        assert len(set(names)) == len(names), "a document's pieces stand together, under one name"


@pytest.mark.parametrize("packed", [False, True])
def test_a_document_has_one_name_wherever_it_is_met(tmp_path: Path, packed: bool) -> None:
    """Whichever cells are asked for: the start of a long document is looked for backwards."""
    text = "\n".join(f"# {number}\n{words(300 * (1 + 9 * (number == 3)), number)}" for number in range(12))
    path = tmp_path / "a.txt"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    names = {cell: [piece.document for piece in found] for cell, found in in_cells(PlainText(path, "^# "))}
    assert len({name for found in names.values() for name in found}) == 12
    for cell in names:
        asked = [cell] if cell % 2 else [cell, max(names)]
        found = dict(PlainText(path, "^# ").read(CELL, sorted(set(asked))))
        assert [piece.document for piece in found[cell]] == names[cell]


def test_rows_stand_in_one_cell_each(tmp_path: Path) -> None:
    """Of every format, in their order, none twice; also rows that are longer than a cell."""
    rows = [*rows_of(60), words(3000), *rows_of(90)]
    objects = [{"text": row, "n": number} for number, row in enumerate(rows)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, objects)))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(objects, indent=1))
    pq.write_table(pa.Table.from_pylist(objects), tmp_path / "d.parquet", row_group_size=40)
    made = text_of(Source(jsonl=(tmp_path,)))
    for reader in (
        JsonLines(tmp_path / "a.jsonl", made),
        JsonLines(tmp_path / "b.jsonl.gz", made),
        JsonValues(tmp_path / "c.json", made),
        Parquet(tmp_path / "d.parquet", made),
    ):
        cells = in_cells(reader)
        assert len(cells) > 5
        assert [piece.text for _, found in cells for piece in found] == rows
        asked = [cell for cell, _ in cells][1::2]
        assert [(cell, found) for cell, found in cells if cell in asked] == list(reader.read(CELL, asked))
    shelf = Shelf([JsonLines(tmp_path / "a.jsonl", made), Parquet(tmp_path / "d.parquet", made)])
    cells = in_cells(shelf)
    assert [piece.text for _, found in cells for piece in found] == rows * 2
    assert list(shelf.read(CELL, [cells[0][0], cells[-1][0]])) == [cells[0], cells[-1]]


# Choice.


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large begins at 100 kB, so that tests are quick."""
    for module in ("sampling", "readers_of_sources", "reading"):
        monkeypatch.setattr(f"criteria.text.{module}.SMALL", 10**5)
    for module in ("sampling", "dataset", "reading"):
        monkeypatch.setattr(f"criteria.text.{module}.BLOCK", 2**15)


def ids_of(text: str) -> NDArray[np.int64]:
    return np.array(WORDS(text, verbose=False)["input_ids"])


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 kB in 40 articles."""
    path = tmp_path_factory.mktemp("prose") / "prose.txt"
    path.write_text("".join(f"# {number}\n{words(800, number)}\n" for number in range(40)))
    return path


@pytest.fixture(scope="module")
def tokens(prose: Path) -> NDArray[np.int64]:
    return ids_of(prose.read_text())


def read(sequences: int = 20, seed: int = 0, length: int = 64, **source: Any) -> Windows:
    return read_windows([Source.model_validate(source)], WORDS, length=length, sequences=sequences, seed=seed)


def place_of(window: NDArray[np.int64], tokens: NDArray[np.int64]) -> int:
    """Where a window stands in a text."""
    begins = np.flatnonzero(tokens == window[0]).tolist()
    return next(at for at in begins if np.array_equal(tokens[at : at + len(window)], window))


def test_windows_are_text_and_the_seed_decides(
    prose: Path, tokens: NDArray[np.int64], tmp_path: Path
) -> None:
    windows = read(text=prose)
    places = [place_of(row, tokens) for row in windows.tokens]
    assert places == sorted(places)
    assert min(np.diff(places)) >= 64, "none overlap"
    assert places[-1] > len(tokens) * 0.8 > len(tokens) * 0.2 > places[0], "they lie all over the text"
    elsewhere = tmp_path / "elsewhere" / "other.txt"
    elsewhere.parent.mkdir()
    elsewhere.write_text(prose.read_text())
    assert read(text=elsewhere).hash == windows.hash, "the name of the file is nothing to the seed"
    packed = tmp_path / "prose.txt.gz"
    packed.write_bytes(gzip.compress(prose.read_bytes(), 1))
    assert read(text=packed).hash == windows.hash, "nor is it how it is kept"
    assert read(text=prose, seed=1).hash != windows.hash
    assert windows.documents == (str(prose),), "one file is one document"


def test_articles_are_documents(prose: Path) -> None:
    """Windows of an article share it, and none reaches into the next."""
    windows = read(60, text=prose, separator="^# ")
    heads = re.finditer(b"(?m)^# (\\d+)", prose.read_bytes())
    starts = {f"{prose}@{match.start()}": int(match[1]) for match in heads}
    assert set(windows.documents) <= starts.keys()
    assert 20 < len(windows.documents) < 40
    for row, document in zip(windows.tokens, windows.document, strict=True):
        number = starts[windows.documents[document]]
        assert place_of(row, ids_of(f"# {number}\n{words(800, number)}")) >= 0


def test_short_rows_are_joined(tmp_path: Path) -> None:
    """As many as fit; every window has other ones."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": words(20, n)}) for n in range(1000)))
    windows = read(jsonl=path)
    assert windows.hash == read(jsonl=path).hash != read(jsonl=path, seed=1).hash
    joined = [row.tolist() for row in windows.tokens]
    assert all([at for at, token in enumerate(row) if token == 1] == [20, 41, 62] for row in joined)
    assert len(windows.documents) == 20
    assert all(re.fullmatch(r".*rows\.jsonl@\d+ … .*rows\.jsonl@\d+", name) for name in windows.documents)
    rows = {tuple(ids_of(words(20, n)).tolist()) for n in range(1000)}
    parts = [tuple(row[at : at + 20]) for row in joined for at in (0, 21, 42)]
    assert rows.issuperset(parts)
    assert len(set(parts)) == len(parts)


def test_long_rows_give_a_window_from_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "books.jsonl"
    path.write_text("\n".join(json.dumps({"text": words(3000, n)}) for n in range(10)))
    windows = read(10, jsonl=path)
    assert len(windows.documents) > 3
    begins = [ids_of(words(3000, n))[:64].tolist() for n in range(10)]
    assert sum(row.tolist() in begins for row in windows.tokens) < 3, "not only their begins"


def test_all_of_a_large_text(prose: Path, tokens: NDArray[np.int64]) -> None:
    """All windows are found, as of a small text, where all are asked; one more is refused with the right
    number.
    """
    has = len(tokens) // 500
    windows = read(has, length=500, text=prose)
    np.testing.assert_array_equal(windows.tokens.reshape(-1), tokens[: has * 500])
    with pytest.raises(ExciseError, match=rf"{has + 1} windows of 500 tokens asked, the text has {has};"):
        read(has + 1, length=500, text=prose)


def test_counting_gives_what_a_small_text_gives(tmp_path: Path) -> None:
    """The same windows by the same seed."""
    small = tmp_path / "small.txt"
    small.write_text("".join(f"# {number}\n{words(40 + number, number)}\n" for number in range(60)))
    cutter, reader = Cutter(WORDS, 64), PlainText(small, "^# ")
    expected = Sampler(reader, cutter, 20, (0, 0), lambda: None).sample()
    passes: list[int] = []
    found = Sampler(reader, cutter, 20, (0, 0), lambda: passes.append(1)).from_all()
    assert [tokens.tolist() for _, tokens in found] == [tokens.tolist() for _, tokens in expected]
    assert len(passes) == 2


def test_every_cell_gives_one_window_at_most(prose: Path) -> None:
    reader = PlainText(prose)
    assert (
        0
        < len(Sampler(reader, Cutter(WORDS, 64), 10**6, (0, 0), lambda: None).from_cells(64))
        <= reader.cells(64 * 64)
    )


def test_rows_that_are_mostly_something_else(tmp_path: Path) -> None:
    """Little text in much of a file: windows are joined over many cells, and the file is not read through."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"vector": "0" * 3000, "text": words(20, n)}) for n in range(2000)))
    made = text_of(Source(jsonl=(path,)))
    assert len(Sampler(JsonLines(path, made), Cutter(WORDS, 64), 50, (0, 0), made.again).sample()) == 50
    assert made.seen < 400


def test_a_large_data_set_is_kept_on_disk_meanwhile(tmp_path: Path) -> None:
    """Its rows are read once; windows are chosen as of a file; nothing is left behind."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": words(20, n)}) for n in range(1000)))
    source = Source(dataset=str(path), documents=800)
    made = RowText(source, WORDS, None, lambda _: None)
    with source_reader(source, made) as reader:
        assert isinstance(reader, JsonLines)
        kept = reader.path
        assert sum(1 for _ in all_pieces(reader, 4096)) == made.seen == 800
    assert not kept.exists()
    windows = read(dataset=str(path), documents=800)
    assert windows.hash == read(dataset=str(path), documents=800).hash
    assert all(str(path) in name for name in windows.documents)


def test_effects_read_from_the_start(prose: Path, tokens: NDArray[np.int64]) -> None:
    """The first windows of a large text are those of its begin; all of them are all of it."""
    np.testing.assert_array_equal(consecutive(prose, WORDS, 64, 8).tokens.reshape(-1), tokens[: 8 * 64])
    whole = consecutive(prose, WORDS, 500)
    np.testing.assert_array_equal(whole.tokens.reshape(-1), tokens[: len(tokens) // 500 * 500])


MEASURE = """
import json, resource, sys, time
from transformers import PreTrainedTokenizerFast
from criteria.text.sources import Source
from criteria.text.reading import read_windows
tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[2], eos_token="<eos>", unk_token="<unk>")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, begun = peak(), time.monotonic()
source = Source(text=(sys.argv[1],), separator="^# ")
windows = read_windows([source], tokenizer, length=512, sequences=128, seed=0)
print(json.dumps([len(windows), time.monotonic() - begun, peak() - before]))
"""


@pytest.mark.slow
def test_a_gigabyte_costs_what_a_megabyte_costs(tmp_path: Path) -> None:
    """128 windows of 1 GB: seconds, and little memory over what the libraries take."""
    path, tokenizer = tmp_path / "huge.txt", tmp_path / "tokenizer.json"
    WORDS.backend_tokenizer.save(str(tokenizer))
    block = "".join(f"# {number}\n{words(800, number)}\n" for number in range(100)).encode()
    try:
        with path.open("wb") as file:
            for _ in range(2**30 // len(block) + 1):
                file.write(block)
        assert path.stat().st_size >= 2**30
        command = [sys.executable, "-c", MEASURE, str(path), str(tokenizer)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    finally:
        path.unlink()
    count, seconds, megabytes = json.loads(done.stdout)
    assert count == 128
    assert seconds < 15, f"{seconds:.1f} s"
    assert megabytes < 300, f"{megabytes:.0f} MB over what the libraries take"
