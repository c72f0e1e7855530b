"""States that wait: in memory up to a bound, beyond it in files that are mapped when they are read."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from experts.anatomy import Anatomy, dissect
from experts.errors import ExciseError
from experts.room import Room
from experts.sweep.spill import SpillFolder
from experts.sweep.streams import Streams
from tests.support import tiny
from tests.support.one_by_one import one_by_one
from tests.support.sweeps import JOBS

A, B = ("clean", 0, 1), ("clean", 1, 1)


@pytest.fixture
def streams(tmp_path: Path) -> Streams:
    """Room for 1000 bytes."""
    return Streams(1000, SpillFolder(tmp_path / "spill"))


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "spill").glob("*")) if (tmp_path / "spill").exists() else []


def test_what_fits_stays_in_memory(streams: Streams, tmp_path: Path) -> None:
    state = {0: torch.ones(250)}
    streams.put(A, state)
    assert streams.get(A) == state
    assert streams.held == streams.waiting["clean"] == 1000
    assert not files(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64])
def test_what_does_not_fit_comes_back_as_it_was(dtype: torch.dtype, tmp_path: Path, streams: Streams) -> None:
    stream = (torch.randn(2, 30, 40) * 100).to(dtype)
    streams.put(A, {"hidden_states": stream, 3: stream.transpose(1, 2)})
    (file,) = files(tmp_path)
    assert streams.held == 0
    assert streams.waiting["clean"] == 2 * stream.nbytes
    back = streams.get(A)
    assert back is not None
    assert list(back) == ["hidden_states", 3]
    assert back["hidden_states"].dtype == dtype
    assert torch.equal(back["hidden_states"], stream)
    assert back[3].stride() == stream.transpose(1, 2).stride()
    streams.drop(A)
    assert streams.waiting["clean"] == 0
    assert not file.exists()
    assert torch.equal(back["hidden_states"], stream), "what is in use outlives its file"


def test_reading_is_lazy(streams: Streams, tmp_path: Path) -> None:
    streams.put(A, {0: torch.zeros(10_000), 1: torch.ones(10_000)})
    back = streams.get(A)
    (file,) = files(tmp_path)
    with file.open("r+b") as opened:
        content = opened.read()
        opened.seek(content.index(b"\x00\x00\x80\x3f" * 100))
        opened.write(b"\x00\x00\x00\x40")  # 2.0, after it was read
    assert back is not None
    assert float(back[1][0]) == 2.0


def test_a_file_is_not_changed_through_what_was_read(streams: Streams) -> None:
    streams.put(A, {0: torch.zeros(1000)})
    back = streams.get(A)
    assert back is not None
    back[0] += 1
    again = streams.get(A)
    assert again is not None
    assert not again[0].any()


def test_a_new_state_takes_the_place_of_the_old(streams: Streams, tmp_path: Path) -> None:
    for size in (250, 300, 200, 300):
        streams.put(A, {0: torch.ones(size)})
        assert len(files(tmp_path)) == (size > 250)
        assert streams.waiting["clean"] == 4 * size
    assert list(streams) == [A]


def test_part_of_a_larger_tensor_does_not_keep_it(streams: Streams, tmp_path: Path) -> None:
    large = torch.ones(100, 100)
    streams.put(A, {0: large[:2]})
    kept = streams.get(A)
    assert kept is not None
    assert kept[0].untyped_storage().nbytes() == 800
    streams.put(B, {0: large[:50]})
    assert files(tmp_path)[0].stat().st_size < 25_000


def test_shelved(streams: Streams, tmp_path: Path) -> None:
    streams.put(A, {0: torch.ones(10)})
    streams.shelve(A)
    assert streams.held == 0
    assert len(files(tmp_path)) == 1
    back = streams.get(A)
    assert back is not None
    assert torch.equal(back[0], torch.ones(10))


def test_without_a_folder_all_stays_in_memory() -> None:
    streams = Streams(10)
    streams.put(A, {0: torch.ones(10)})
    streams.shelve(A)
    assert streams.held == 40


def test_files_of_a_record_outlive_their_states(streams: Streams, tmp_path: Path) -> None:
    assert streams.spill is not None
    streams.put(A, {0: torch.ones(300)})
    streams.spill.pin([name for name, *_ in streams.in_files().values()])
    streams.put(A, {0: torch.zeros(300)})
    _, second = files(tmp_path)
    streams.spill.pin([second.name])
    assert files(tmp_path) == [second]


@pytest.fixture
def _small_files() -> Iterator[None]:
    """As on a disk with little left: no file may become larger than 3 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def model() -> Anatomy:
    return dissect(tiny.build("olmoe"))


@pytest.mark.usefixtures("_small_files")
def test_a_full_disk_is_one_clear_line(model: Anatomy, tmp_path: Path) -> None:
    """Two windows of 16 tokens, 32 channels wide, in float32."""
    message = (
        r"spill/\S+: waiting states cannot be written \(File too large\): they need 4\.10 kB more, "
        r"\S+ GB are free; free some, or set memory\.spill to another folder$"
    )
    with pytest.raises(ExciseError, match=message):
        JOBS["statistics"](one_by_one(model, Room(1, tmp_path / "spill")))
    assert not files(tmp_path)


@pytest.mark.parametrize("job", JOBS)
def test_an_error_leaves_no_files(job: str, model: Anatomy, tmp_path: Path) -> None:
    def fail(span: range) -> None:
        if span.start == 2:
            raise OSError("the checkpoint is gone")

    folder = tmp_path / "spill"
    with pytest.raises(OSError, match="the checkpoint is gone"):
        JOBS[job](one_by_one(model, Room(1, folder), fail))
    assert not files(tmp_path)
