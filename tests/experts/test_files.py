"""Files and folders that are replaced as a whole, or not at all."""

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from experts.files import remove_leftovers, replacing, replacing_folder, temporary_folder
from experts.stored_arrays import StoredArrays


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    path, folder = tmp_path / ("long" * 63), tmp_path / "adapter"
    path.write_text("old")
    with suppress(KeyboardInterrupt), replacing(path) as fresh:
        fresh.write_text("half")
        raise KeyboardInterrupt
    with replacing_folder(folder) as new:
        (new / "one").touch()
    with suppress(KeyboardInterrupt), replacing_folder(folder) as new:
        (new / "two").touch()
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert sorted(file.name for file in tmp_path.rglob("*")) == sorted([path.name, "adapter", "one"])
    with replacing_folder(folder) as new:
        (new / "two").touch()
    assert [file.name for file in folder.iterdir()] == ["two"]


def test_a_full_disk_names_the_file_and_not_its_temporary_name(tmp_path: Path) -> None:
    """Also where the library only says that it could not write; another file's error keeps its name."""

    def at(error: Exception) -> str:
        with pytest.raises(OSError, match=".") as caught, replacing(tmp_path / "result"):
            raise error
        return Path(caught.value.filename).name

    full = os.strerror(errno.ENOSPC)
    assert at(OSError(errno.ENOSPC, full)) == "result"
    assert at(OSError(errno.ENOSPC, full, str(tmp_path / "other"))) == "other"
    assert at(SafetensorError(f"Error while serializing: I/O error: {full} (os error 28)")) == "result"
    assert (
        at(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 534")) == "result"
    )
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "gone" / "result"):
        pass
    assert caught.value.filename == str(tmp_path / "gone" / "result")
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_is_gone_at_the_end_or_after_a_kill(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), temporary_folder(tmp_path) as fresh:
        (fresh / "weights").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    never_ended = temporary_folder(tmp_path)
    (never_ended.__enter__() / "weights").touch()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_writers_of_one_name_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two containers on one volume, with the same process number: every reader finds one result
    or the other.
    """
    monkeypatch.setattr(os, "getpid", lambda: 7)
    results = [{"a": np.full((50, 50), float(value))} for value in range(2)]
    failed: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(60):
                StoredArrays(tmp_path / "entry", "key").write(results[number])
        except OSError as error:
            failed.append(error)

    StoredArrays(tmp_path / "entry", "key").write(results[0])
    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found = StoredArrays(tmp_path / "entry", "key").read()["a"]
        assert (found == found[0, 0]).all()
    assert not failed
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
