"""Headers of a real size: 18,867 tensors are opened, and inspected without an error."""

from pathlib import Path

import pytest

from benchmarks.opening import measure


@pytest.mark.slow
def test_headers_of_qwen3_30b(tmp_path: Path) -> None:
    found = measure("qwen3-30b", tmp_path / "model")
    assert found["tensors"] == 18_867
    assert found["gigabytes"] == 61.1
    assert isinstance(found["open"], dict)
    assert isinstance(found["inspect"], dict)
