"""Text that every Python installation carries: its standard library, split by file.

There are two domains. `code` is the source with its docstrings cut out; `prose` is the docstrings and
`pydoc_data.topics`. A file belongs to one split. The hash of its path alone decides which, so that splits
stay the same with other Python versions and missing modules.
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
        "__pycache__",
        "dist-packages",
        "distutils",
        "encodings",
        "ensurepip",
        "idlelib",
        "lib-dynload",
        "lib2to3",
        "msilib",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "tkinter",
        "turtledemo",
    }
)
SHORTEST = 400  # characters; a shorter document is a stub


def split_of(name: str) -> Split:
    """Return the split of a document: 80 % train, 10 % calibration, 10 % test, by the SHA-256 of its name."""
    bucket = _digest(name)[0] % 10
    if bucket < 8:
        return "train"
    return "calibration" if bucket == 8 else "test"


def documents(domain: Domain, split: Split) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of every document of one domain and split, in the order of the names' hashes."""
    texts = dict(_topics()) if domain == "prose" else {}
    extract = _docstrings if domain == "prose" else _code
    for name, path in _files():
        if split_of(name) == split:
            source = _read(path)
            with suppress(SyntaxError, ValueError, RecursionError):  # of another Python: as good as missing
                texts[name] = extract(source)
    for name in sorted(texts, key=_digest):
        if split_of(name) == split and len(texts[name]) >= SHORTEST:
            yield name, texts[name]


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _files() -> Iterator[tuple[str, Path]]:
    """(name, path) of the modules of the standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not SKIPPED.intersection(parts) and not parts[0].startswith(("config-", "_sysconfigdata")):
            yield "/".join(parts), path


def _topics() -> Iterator[tuple[str, str]]:
    """(name, text) of the help on Python's topics."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # small distributions leave it out, as other modules
        return
    for name, text in topics.items():
        yield f"topics/{name}", text.strip()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _docstrings(source: str) -> str:
    """The docstrings of a module, in their order."""
    nodes = sorted(_docstring_nodes(source), key=lambda node: node.lineno)
    texts = [inspect.cleandoc(str(node.value)) for node in nodes]
    return "\n\n".join(text for text in texts if text)


def _code(source: str) -> str:
    """The source of a module without the lines of its docstrings."""
    hidden: set[int] = set()
    for node in _docstring_nodes(source):
        hidden.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = [line for number, line in enumerate(source.splitlines(), 1) if number not in hidden]
    return "\n".join(lines).strip() + "\n"


def _docstring_nodes(source: str) -> Iterator[ast.Constant]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = _docstring_of(node.body)
            if docstring is not None:
                yield docstring


def _docstring_of(body: list[ast.stmt]) -> ast.Constant | None:
    """The docstring that the statements of a module, class or function begin with."""
    first = body[0] if body else None
    if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
        return None
    return first.value if isinstance(first.value.value, str) else None
