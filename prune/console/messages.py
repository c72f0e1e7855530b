"""What the terminal shows besides results: each note once, and reports of libraries only with --debug."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from experts.errors import is_own
from experts.notes import LOGGER, tell
from prune.console.environment import WITHOUT_BARS

# Libraries read these when they are loaded, so they are set before. A user's own settings stay.
SILENT = {
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "LMEVAL_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
LIBRARIES = ("accelerate", "datasets", "huggingface_hub", "lm_eval", "peft", "transformers")


@contextmanager
def listening(quiet: bool, debug: bool) -> Iterator[None]:
    """Show notes inside the block, unless `quiet`; show reports of libraries only with `debug`."""
    shown, level = Shown(notes=not quiet), LOGGER.level
    if quiet:
        os.environ.update(dict.fromkeys(WITHOUT_BARS, "1"))
    if not quiet or debug:
        LOGGER.addHandler(shown)
        LOGGER.setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        with suppress_libraries() if not debug else warnings.catch_warnings():
            yield
    finally:
        LOGGER.removeHandler(shown)
        LOGGER.setLevel(level)


def printable(text: str) -> str:
    """Escape control characters: a terminal would obey those in a name from a checkpoint."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


class Shown(logging.Handler):
    """Prints notes on stderr, above the progress bars, each once."""

    def __init__(self, notes: bool) -> None:
        super().__init__()
        self.notes = notes
        self.said: set[str] = set()
        self.setFormatter(logging.Formatter())  # the traceback of an error, below its line

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        if record.levelno == logging.INFO:
            line = f"note: {printable(record.getMessage())}" if self.notes else ""
        else:
            line = f"{record.levelname.lower()}: {self.format(record)}"
        if line and line not in self.said:
            self.said.add(line)
            tqdm.write(line, file=sys.stderr)


@contextmanager
def suppress_libraries() -> Iterator[None]:
    """Silence loggers and warnings of libraries; warnings about a user's own file become notes."""
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    silent = logging.NullHandler()  # with any handler, Python's handler of last resort stays silent
    logging.getLogger().addHandler(silent)
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in LIBRARIES}
    for logger in loggers:  # only libraries that are loaded already have one
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warned
            yield
    finally:
        logging.getLogger().removeHandler(silent)
        for logger, level in loggers.items():
            logger.setLevel(level)


def _warned(  # as `warnings` calls it
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    if not _is_library(filename) and not is_own(filename):
        tell(f"{filename}:{lineno}: {category.__name__}: {' '.join(str(message).split())}")


def _is_library(file: str) -> bool:
    """Whether a file belongs to Python itself or to an installed package."""
    path = Path(file)
    with suppress(OSError):
        path = path.resolve()
    homes = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), Path(os.__file__).resolve().parent}
    installed = "site-packages" in path.parts or any(home in path.parents for home in homes)
    return installed or file.startswith("<")
