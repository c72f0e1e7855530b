"""Where cached results lie."""

import os
from pathlib import Path

import pytest

from experts.cache import Cache, cache_folder


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative folders of the desktop standard do not count; a user without a home has none, and that is no
    error.
    """
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("EXCISE_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("EXCISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "excise"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "excise"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(
        os.path, "expanduser", lambda path: path
    )  # no HOME, and no entry in the list of users
    assert cache_folder() is None
    assert Cache(tmp_path / "run").shared is None
