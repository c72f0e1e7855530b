"""A criterion that a user wrote: a function of statistics in a Python file."""

import importlib.util
from pathlib import Path
from types import ModuleType

from criteria.criterion import OBSERVED, Criterion
from experts.errors import ExciseError, one_line


def user_criterion(name: str, path: Path, function: str) -> Criterion:
    """Return the criterion `file.py:function`; its file is run.

    Args:
        name: the criterion as the recipe writes it
        path: the Python file
        function: a name in it; the first line of its docstring is the formula in reports

    Raises:
        ExciseError: the file cannot be imported, or has no such function.
    """
    score = getattr(_imported(name, path), function, None)
    if not callable(score):
        raise ExciseError(f"criterion {name!r}: {path} has no function {function!r}")
    return Criterion(
        name,
        score,
        formula=_formula(score, function),
        needs="user function",
        cost=OBSERVED,
        source=str(path),
    )


def _imported(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ExciseError(f"criterion {name!r}: no file {path}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file raises what it likes
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ExciseError(f"criterion {name!r}: {path} cannot be imported ({reason})") from error
    return module


def _formula(score: object, name: str) -> str:
    """The first line of a docstring that is not blank, or the name."""
    for line in str(score.__doc__ or "").splitlines():
        if line.strip():
            return line.strip()
    return name
