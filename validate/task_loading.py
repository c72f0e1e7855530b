"""Finding and loading lm-eval's tasks by name; what is wrong with a name or a file is said in one line."""

import contextlib
import difflib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks import TaskManager

from experts.errors import ExciseError, let_through, one_line
from validate.task_needs import refusal_of_code

# A file with one of these keys has items, or says where they come from.
SOURCES = {"group", "include", "class", "dataset_path", "custom_dataset"}


def check_task_files(folder: Path) -> None:
    """Refuse a folder with a task file that cannot be parsed, which lm-eval would leave out without a word.

    Raises:
        ExciseError: that names the file.
    """
    if not folder.is_dir():
        raise ExciseError(f"validate.tasks.include: {folder} is not a folder")
    files = sorted(folder.rglob("*.yaml"))
    if not files:
        raise ExciseError(f"validate.tasks.include: no task file (*.yaml) in {folder}")
    for file in files:
        _check_task_file(file)


def _check_task_file(file: Path) -> None:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError) as error:
        raise ExciseError(f"{file}: not a task file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        what = f"a mapping of keys is expected, found {type(content).__name__}"
        raise ExciseError(f"{file}: not a task file: {what}")
    if "task" in content and not content.keys() & SOURCES:
        raise ExciseError(f"{file}: not a task file: it names no dataset_path, so there are no items")


class _Loader(yaml.SafeLoader):
    """Reads task files without running what they name with `!function`."""


_Loader.add_constructor("!function", lambda _, node: node.value)


def manager_for(names: tuple[str, ...], include: Path | None) -> TaskManager:
    """Return lm-eval's manager of tasks, one that knows all the names.

    lm-eval's own thousands of tasks are indexed only if one of them is asked for.

    Args:
        names: of tasks
        include: folder of task files; None = lm-eval's own tasks

    Raises:
        ExciseError: for a name that is not known, with the nearest ones.
    """
    if include is not None:
        own = TaskManager(include_path=str(include), include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    manager = TaskManager(include_path=str(include) if include else None)
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise ExciseError(f"validate.tasks.names: lm-eval knows no task {name!r}; {hint}")
    return manager


def load_tasks(manager: TaskManager, names: list[str], folder: Path) -> Any:
    """Load tasks with their items.

    Args:
        manager: of lm-eval
        names: of tasks
        folder: where relative `data_files` of the task files start

    Raises:
        ExciseError: that names tasks, their files and the cause.
    """
    try:
        with quiet(), contextlib.chdir(folder):
            return manager.load(names)
    except Exception as error:
        let_through(error)
        cause = refusal_of_code(str(error)) or f"{type(error).__name__}: {_cause(error)}"
        what = f"{', '.join(names)}{_files_of(manager, names)} cannot be loaded"
        raise ExciseError(f"validate.tasks: {what}: {cause}") from error


def _files_of(manager: TaskManager, names: list[str]) -> str:
    """The files of tasks, in brackets; empty where they have none."""
    entries = [manager.task_index.get(name) for name in names]
    files = [str(entry.yaml_path) for entry in entries if entry and entry.yaml_path]
    return f" ({', '.join(files)})" if files else ""


def _cause(error: BaseException) -> str:
    """The message, and that of the error behind it: `datasets` says what is wrong only there."""
    message, inner = one_line(error), error.__cause__ or error.__context__
    if inner is None or one_line(inner) in message:
        return message
    return f"{message} ({one_line(inner)})"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the bars that lm-eval and datasets draw for every plan."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
