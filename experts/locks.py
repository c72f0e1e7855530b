"""Locks on files and folders (flock), where there are any: some network file systems have none."""

import errno
import os

# Another process has the lock. Any other error means that there are no locks here.
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def lock(descriptor: int) -> bool:
    """Take the lock of an open file until it is closed.

    Returns:
        False where there are no locks.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            raise BlockingIOError(error.errno, os.strerror(error.errno)) from error
        return False
    return True
