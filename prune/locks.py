"""Locks on files and folders (flock), where there are any: some systems and network file systems have none."""

import errno
import os

HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # by another process; any other error: there are no locks here


def lock(descriptor: int) -> bool:
    """Takes the lock of an open file until it is closed; False where there are no locks.

    Raises BlockingIOError where another process has it.
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
