"""Whatever can go wrong between here and the hub, in one line with the way out."""

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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
PASSING = frozenset({408, 425, 429})  # status codes below 500 that may pass in a minute
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
OFFLINE = "HF_HUB_OFFLINE is set"
LONGEST = 200  # characters of a library's message: addresses of files are signed, and long


@contextmanager
def asking(name: HubName, step: str, way_out: str = AGAIN) -> Iterator[None]:
    """Turn what the hub's client raises inside the block into an ExciseError.

    Everything is caught, because there is no common base: the HTTP library's own errors, OSError of the
    cache, ValueError and ImportError of proxies, whatever the storage raises.

    Args:
        name: of the model
        step: what is tried, as in "reading config.json"
        way_out: what to do about errors that may pass
    """
    try:
        yield
    except (ExciseError, MemoryError):
        raise
    except Exception as error:
        failure = f"{step} failed ({reason(error)}); {way_out}"
        raise ExciseError(f"{name}: {answer(name, error) or of_disk(error) or failure}") from error


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C close the connections first: threads would go on reading to the end of a file."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        close_session()
        if callable(before):
            before(number, frame)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)


def answer(name: HubName, error: BaseException) -> str:
    """What the hub's answer means for the user; empty where there is none, or it may pass."""
    answers = (cause for cause in _chain(error) if isinstance(cause, HfHubHTTPError))
    cause = next(answers, error)
    if isinstance(cause, GatedRepoError):
        page = f"{constants.ENDPOINT}/{name.id}"
        return f"its owners give it to those who accept their terms: do so at {page}, then log in ({LOG_IN})"
    if isinstance(cause, RevisionNotFoundError):
        return f"the model on the hub has no branch, tag or commit {name.revision or 'main'!r}"
    if isinstance(cause, RepositoryNotFoundError):
        return (
            f"no such folder, and no such model on the hub; if it is a private one, log in first ({LOG_IN})"
        )
    if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
        return f"a file went from the hub while it was being read ({reason(cause)}); run the command again"
    return _refusal(cause) if isinstance(cause, HfHubHTTPError) else ""


def _refusal(error: HfHubHTTPError) -> str:
    """What a status code means for the user; empty where it may pass."""
    status = error.response.status_code
    if status == 401:
        return f"the hub does not accept the token; log in again ({LOG_IN})"
    if status == 403:
        return (
            f"the hub refuses it to this account ({reason(error)}); "
            f"ask its owners, or log in as another ({LOG_IN})"
        )
    is_final = 400 <= status < 500 and status not in PASSING
    return f"the hub refuses the request ({reason(error)})" if is_final else ""


def reason(error: BaseException) -> str:
    """Where an error began, in a line: `Connection refused`, not `cannot find the requested files`."""
    *_, root = _chain(error)
    return OFFLINE if isinstance(root, OfflineModeIsEnabled) else one_line(root)[:LONGEST]


def unreached(reason: str) -> str:
    """That the hub does not answer, and why."""
    return f"the hub cannot be reached ({reason})"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, the first cause last."""
    while error is not None:
        yield error
        error = error.__cause__


def of_disk(error: BaseException) -> str:
    """What keeps the local cache from being used: full, read-only, no folder; empty for any other error.

    A connection's errors have numbers too, but come inside the HTTP library's own, and name no file.
    """
    if not isinstance(error, OSError) or isinstance(error, HfHubHTTPError) or not error.strerror:
        return ""
    if error.filename is None and error.errno not in DISK_FULL:
        return ""
    where = error.filename or constants.HF_HUB_CACHE
    return f"{where}: {error.strerror}; HF_HOME names another folder for downloads"
