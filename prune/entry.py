"""Where the command `excise` starts: before anything slow is imported, so that Ctrl-C has one clear line from the first moment."""

import signal
import sys
from types import FrameType


def main() -> None:
    """Runs the command line."""
    signal.signal(signal.SIGINT, _stop)
    from prune.cli import app

    app()


def _stop(_signal: int, _frame: FrameType | None) -> None:
    sys.stderr.write("excise: interrupted before anything was done\n")
    raise SystemExit(1)


if __name__ == "__main__":
    main()
