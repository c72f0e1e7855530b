"""The folders are this checkout's packages, and import downwards only."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ["experts", "criteria", "validate", "finetune", "prune"]


@pytest.mark.parametrize("package", ORDER)
def test_package_is_this_checkout(package: str) -> None:
    assert Path(importlib.import_module(package).__file__ or "").parent == ROOT / package


@pytest.mark.parametrize("package", ORDER)
def test_imports_point_down(package: str) -> None:
    above = set(ORDER[ORDER.index(package) + 1 :])
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            assert not above.intersection(name.split(".")[0] for name in names), f"{file} imports upwards"


def test_no_dense_file() -> None:
    """One idea a file: none of the packages' files grows past 300 lines."""
    long = {
        str(f): n
        for p in ORDER
        for f in (ROOT / p).rglob("*.py")
        if (n := len(f.read_text(encoding="utf-8").splitlines())) > 300
    }
    assert not long
