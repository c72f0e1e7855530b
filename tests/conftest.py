"""Fixtures that tests of several folders share; no network, no user cache, one thread a process.

Whatever takes long to import is imported in the fixtures: the process that hands out the tests needs none of
it.
"""

import gc
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.support.fake_hub import FakeHub
    from tests.support.play import Play

WORKERS = 4  # each holds torch and a model: about 1.5 GB
DATASETS = tempfile.mkdtemp(prefix="excise-datasets-")

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_DATASETS_CACHE"] = DATASETS
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; the models are tiny

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("excise", deadline=None)
hypothesis.settings.load_profile("excise")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process for every core when folders are asked for; none beside pytest's own for single files."""
    if not all(Path(argument).is_dir() for argument in config.args):
        return 0
    return min(len(os.sched_getaffinity(0)), WORKERS)


def pytest_unconfigure() -> None:
    shutil.rmtree(DATASETS, ignore_errors=True)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", autouse=True)
def _settled_heap() -> None:
    """What libraries left is looked through once a file: statsmodels and every unloaded model collect garbage
    again and again.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def wide_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes with the demo in float32, for `demo_of`."""
    from tests.support.demo import in_float32

    return in_float32(tmp_path_factory.mktemp("wide") / "recipes")


@pytest.fixture
def demo_in_float32(wide_demo: Path) -> Iterator[None]:
    """`demo` is the model in float32, in one test."""
    from tests.support.demo import demo_of

    with demo_of(wide_demo):
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real text and reference data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("EXCISE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no reference data at {folder} (set EXCISE_SHARED)")
    return folder


# Models and recipes.


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of all families, in the names of the hub (transformers writes experts one by one)."""
    from tests.support import tiny

    root = tmp_path_factory.mktemp("models")
    return {family: tiny.save(tiny.build(family), root / family) for family in tiny.FAMILIES}


@pytest.fixture(scope="session")
def play(tmp_path_factory: pytest.TempPathFactory) -> "Play":
    """What every command runs on in a second."""
    from tests.support.play import Play

    return Play(tmp_path_factory.mktemp("play"))


@pytest.fixture
def recipe_path(saved: dict[str, Path], tmp_path: Path) -> Path:
    """Half the experts of a tiny OLMoE, by reap and at random."""
    from tests.support.recipes import write_recipe

    return write_recipe(tmp_path, saved["olmoe"])


@pytest.fixture
def recovery_recipe(recipe_path: Path) -> Path:
    """The same by reap, with a training of four steps on other text."""
    from tests.support.recipes import add_training

    return add_training(recipe_path)


# A hub on this machine.


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OLMoE in three shards of about 120 kB, with a card."""
    from tests.support.fake_hub import write_repository

    return write_repository(tmp_path_factory.mktemp("hub") / "tiny")


@pytest.fixture
def hub(hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["FakeHub"]:
    """It serves org/tiny, with second copies of its weights; the client waits for nothing."""
    import huggingface_hub

    from tests.support.fake_hub import COPIES, online, serving

    with serving() as server:
        server.add("org/tiny", hub_folder, **COPIES)
        online(server, tmp_path / "cache", monkeypatch)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Switches the client of the hub off."""
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
