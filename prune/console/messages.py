"""What reaches the terminal besides results: notes, once each. Reports of libraries only with --debug."""

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

# Read when the libraries are loaded, so set before. What the user has set stays.
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
WITHOUT_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS")


@contextmanager
def listening(quiet: bool, debug: bool) -> Iterator[None]:
    """Inside the block notes are shown (not with `quiet`), and library reports are not (but with `debug`)."""
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
    """One line without control characters: names from a checkpoint may hold what a terminal obeys."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


class Shown(logging.Handler):
    """Lines on stderr, above the progress bars; none twice."""

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
    """Loggers and warnings speak of what the user did not write; those of a user's own file become notes."""
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    silent = logging.NullHandler()  # with any handler there, Python's last resort does not print
    logging.getLogger().addHandler(silent)
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in LIBRARIES}
    for logger in loggers:  # of those that are loaded already
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
    """Of Python itself, or of an installed package."""
    path = Path(file)
    with suppress(OSError):
        path = path.resolve()
    homes = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), Path(os.__file__).resolve().parent}
    installed = "site-packages" in path.parts or any(home in path.parents for home in homes)
    return installed or file.startswith("<")
