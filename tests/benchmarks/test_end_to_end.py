"""The whole run under a limit, at a small size: streamed and resident come to the same files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_small(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.end_to_end", "--tiny", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["same"]) == 4
    assert all(result["same"].values())
    assert result["streamed"]["layers"] == 5 * 3
    assert result["streamed"]["read_per_sweep"] <= 1.05
    assert not list(tmp_path.iterdir())
