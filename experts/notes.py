"""Notes to the user during long work, through the logger `excise`: the command line shows them above bars."""

import logging

LOGGER = logging.getLogger("excise")


def tell(note: str) -> None:
    """A line for the user. In Python nothing is shown unless the logger `excise` is given a handler."""
    LOGGER.info(note)


def suppressed(error: BaseException, instead: str) -> None:
    """An error that the work goes on after: shown whole with --debug. instead: what is done now."""
    LOGGER.debug("%s: %s; %s", type(error).__name__, error, instead, exc_info=error)
