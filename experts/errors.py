"""The one exception that reaches a user: its message is one clear line that names the problem and the way out."""


class ExciseError(Exception):
    """An error a user can act on. The command line prints the message and exits 1."""


def one_line(error: BaseException) -> str:
    """The first line of what another library said."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
