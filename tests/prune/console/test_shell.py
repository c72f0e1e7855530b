"""--version, and what a shell completes; without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prune.console import completion
from prune.console.version import version_line

ROOT = Path(__file__).resolve().parents[3]


def run_python(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    settings = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=settings, check=False
    )


def test_version_is_one_line_and_quick() -> None:
    code = (
        "import sys; sys.argv = ['excise', '--version']\n"
        "from prune.entry import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{version_line()}\n"
    assert done.stdout.startswith("excise ")


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("excise prune demo-he", "demo-heal"),
        ("excise prune --criterion routing_w", "routing_weight"),
        ("excise inspect dem", "demo"),
        ("excise comp", "compare"),
    ],
)
def test_completion(line: str, word: str) -> None:
    code = (
        "import sys; sys.argv = ['excise']\n"
        "from prune.entry import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    done = run_python(code, _EXCISE_COMPLETE="complete_bash", **asked)
    assert done.returncode == 0, done.stderr
    assert word in done.stdout.split()


def test_models_of_the_cache_and_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--org--tiny--moe").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text("")
    assert completion.models("org") == ["org/tiny--moe"]
    assert completion.models(f"{tmp_path}/mo") == [f"{tmp_path}/model"]
    assert completion.recipes(f"{tmp_path}/") == [f"{tmp_path}/recipe.yaml"]
    assert completion.recipes(f"{tmp_path}/absent/") == []
