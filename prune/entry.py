"""Where `excise` starts: before anything slow is imported, so that Ctrl-C has one clear line at once."""

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGINT, _stop)
    if os.name != "posix":
        _end("Excise runs on Linux (on Windows: in WSL); this system has neither its locks nor its renames")
    try:
        from experts.ranks import join
        from experts.streaming.allocation import keep_products
        from experts.team import serve
        from prune.console.environment import hide_bars, open_streams, use_large_pages, use_width

        open_streams()
        use_width()
        hide_bars()
        use_large_pages()
        keep_products()
        ranks = join()
        if ranks is not None and ranks.rank > 0:
            signal.signal(signal.SIGINT, _leave)
            from prune.console.messages import listening

            with listening(quiet=True, debug=False):
                serve(ranks)
            return
        from prune.console.cli import app
    except Exception as error:  # noqa: BLE001 - what is installed does not fit, in whatever way
        from prune.console.explain import explained

        _end(explained(error))
    try:
        app()
    finally:
        if ranks is not None:
            from experts.team import dismiss

            dismiss(ranks)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    _end("interrupted before anything was done")


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """Without a word: rank 0 says it."""
    raise SystemExit(1)


def _end(line: str) -> None:
    sys.stderr.write(f"excise: {line}\n")
    raise SystemExit(1)


if __name__ == "__main__":
    main()
