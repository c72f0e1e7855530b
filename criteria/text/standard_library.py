"""Text that every Python installation carries: the standard library, split by file.

Two domains: `code` is the source with its docstrings cut out, `prose` is the docstrings plus `pydoc_data.topics`. A file belongs
to one split, decided by the hash of its path alone, so that the split survives other Python versions and missing modules.
"""

import ast
import hashlib
import importlib
import inspect
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

Domain = Literal["code", "prose"]
Split = Literal["train", "calibration", "test"]

# Folders that some distributions leave out, that are mere tables, or that quote other files.
SKIPPED = frozenset(
    {
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "turtledemo",
        "ensurepip",
        "pydoc_data",
        "encodings",
        "tkinter",
        "msilib",
    }
    | {"site-packages", "dist-packages", "__pycache__", "lib-dynload", "distutils"}
)
SHORTEST = 400  # characters; below this a document is a stub


def split_of(name: str) -> Split:
    """80 % train, 10 % calibration, 10 % test, by the SHA-256 of the document's name."""
    bucket = hashlib.sha256(name.encode()).digest()[0] % 10
    return "train" if bucket < 8 else "calibration" if bucket == 8 else "test"


def documents(domain: Domain, split: Split) -> Iterator[tuple[str, str]]:
    """(name, text) of every document of one domain and split, in the order of the names' hashes."""
    found = dict(_topics()) if domain == "prose" else {}
    for name, path in _files():
        if split_of(name) == split:
            text = _read(path)
            with suppress(SyntaxError, ValueError, RecursionError):  # of another Python: as good as missing
                found[name] = _docstrings(text) if domain == "prose" else _code(text)
    for name in sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if split_of(name) == split and len(found[name]) >= SHORTEST:
            yield name, found[name]


def _files() -> Iterator[tuple[str, Path]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not SKIPPED.intersection(parts) and not parts[0].startswith(("config-", "_sysconfigdata")):
            yield "/".join(parts), path


def _topics() -> Iterator[tuple[str, str]]:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # small distributions leave it out, as other modules
        return
    for name, text in topics.items():
        yield f"topics/{name}", text.strip()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _docstring_nodes(source: str) -> Iterator[ast.Constant]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield first.value


def _docstrings(source: str) -> str:
    nodes = sorted(_docstring_nodes(source), key=lambda node: node.lineno)
    return "\n\n".join(text for node in nodes if (text := inspect.cleandoc(str(node.value))))


def _code(source: str) -> str:
    lines = source.splitlines()
    hidden = {
        line
        for node in _docstring_nodes(source)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    return "\n".join(line for number, line in enumerate(lines, 1) if number not in hidden).strip() + "\n"
