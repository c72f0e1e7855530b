"""Notes to the user during long work, through the logger `excise`.

The command line shows them above its progress bars.
"""

import logging

LOGGER = logging.getLogger("excise")


def tell(note: str) -> None:
    """Give the user a line to read. In Python nothing is shown unless the logger `excise` has a handler."""
    LOGGER.info(note)


def log_traceback(error: BaseException, instead: str = "") -> None:
    """Log an error whole, at debug level (--debug): one that becomes a line, or that the work survives.

    Args:
        error: what was raised
        instead: how the work goes on
    """
    consequence = f"; {instead}" if instead else ""
    LOGGER.debug("%s: %s%s", type(error).__name__, error, consequence, exc_info=error)
