"""Whatever can go wrong between here and the hub, in one line with the way out. No torch."""

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from huggingface_hub import close_session, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from experts.disk.names import HubName
from experts.errors import ExciseError, one_line

AGAIN = "check the connection and run the command again"
RESUMED = f"{AGAIN}: files that are complete are kept"
LOG_IN = "`hf auth login`, or HF_TOKEN"
PASSING = frozenset({408, 425, 429})  # answers below 500 that may be others in a minute
FULL = (errno.ENOSPC, errno.EDQUOT)
OFFLINE = "HF_HUB_OFFLINE is set"
LONGEST = 200  # characters of what a library said: addresses of files are signed, and long


@contextmanager
def asking(name: HubName, step: str, way_out: str = AGAIN) -> Iterator[None]:
    """What the hub's client raises inside becomes an ExciseError.

    step: what was tried, as in "reading config.json"; way_out: for errors that may pass.
    Everything is caught, because there is no common base: the HTTP library's own errors, OSError of the
    cache, ValueError and ImportError of proxies, whatever the storage raises.
    """
    try:
        yield
    except (ExciseError, MemoryError):
        raise
    except Exception as error:
        broken = f"{step} failed ({reason(error)}); {way_out}"
        raise ExciseError(f"{name}: {answer(name, error) or of_disk(error) or broken}") from error


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C closes the connections first: threads that read from them would go on to the end of a file."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
        close_session()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)


def answer(name: HubName, error: BaseException) -> str:
    """What the hub's answer means for the user; empty where it gave none, or may give another in a minute."""
    found = next((one for one in _chain(error) if isinstance(one, HfHubHTTPError)), error)
    if isinstance(found, GatedRepoError):
        page = f"{constants.ENDPOINT}/{name.id}"
        return f"its owners give it to those who accept their terms: do so at {page}, then log in ({LOG_IN})"
    if isinstance(found, RevisionNotFoundError):
        return f"the model on the hub has no branch, tag or commit {name.revision or 'main'!r}"
    if isinstance(found, RepositoryNotFoundError):
        private = f"if it is a private one, log in first ({LOG_IN})"
        return f"no such folder, and no such model on the hub; {private}"
    if isinstance(found, EntryNotFoundError) and not isinstance(found, LocalEntryNotFoundError):
        return f"a file went from the hub while it was being read ({reason(found)}); run the command again"
    status = found.response.status_code if isinstance(found, HfHubHTTPError) else 0
    if status == 401:
        return f"the hub does not accept the token; log in again ({LOG_IN})"
    if status == 403:
        way_out = f"ask its owners, or log in as another ({LOG_IN})"
        return f"the hub refuses it to this account ({reason(found)}); {way_out}"
    final = 400 <= status < 500 and status not in PASSING
    return f"the hub refuses the request ({reason(found)})" if final else ""


def reason(error: BaseException) -> str:
    """Where an error began, in a line: `Connection refused` rather than `cannot find the requested files`."""
    *_, root = _chain(error)
    return OFFLINE if isinstance(root, OfflineModeIsEnabled) else one_line(root)[:LONGEST]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def of_disk(error: BaseException) -> str:
    """What keeps the local cache from being used: full, read-only, no folder; empty for any other error.

    A connection's errors have numbers too, but come inside the HTTP library's own, and name no file.
    """
    if not isinstance(error, OSError) or isinstance(error, HfHubHTTPError) or not error.strerror:
        return ""
    if error.filename is None and error.errno not in FULL:
        return ""
    where = error.filename or constants.HF_HUB_CACHE
    return f"{where}: {error.strerror}; HF_HOME names another folder for downloads"
