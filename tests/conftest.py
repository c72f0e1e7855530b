"""Fixtures: every family saved once as a checkpoint; no network, no user cache."""

import gc
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="excise-datasets-")

from tests.support import tiny
from tests.support.fake_hub import hub, hub_folder, offline  # noqa: F401 - fixtures
from tests.support.recipes import recipe_path, recovery_recipe  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from tests.support.play import Play


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", autouse=True)
def _settled_heap() -> None:
    """What libraries left is looked through once per file: statsmodels and every unloaded model collect garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of all families, in the names of the hub (transformers writes experts one by one)."""
    root = tmp_path_factory.mktemp("models")
    return {family: tiny.save(tiny.build(family), root / family) for family in tiny.FAMILIES}


@pytest.fixture(scope="session")
def play(tmp_path_factory: pytest.TempPathFactory) -> "Play":
    """What every command runs on in a second."""
    from tests.support.play import Play

    return Play(tmp_path_factory.mktemp("play"))


@pytest.fixture
def shared() -> Path:
    """The folder with real text and reference data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("EXCISE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no reference data at {folder} (set EXCISE_SHARED)")
    return folder
