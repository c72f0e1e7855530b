"""`excise` as torchrun starts it in the test of a killed rank (tests/prune/test_ranks.py).

Every layer that is read is followed by a record of the sweep; the rank that KILL names is killed after as
many layers as LAYERS says. With CTRL_C it is not: torchrun is interrupted, as from a terminal.
"""

import os
import signal
import sys
from typing import Any

from experts.streaming.layers import Streamed
from experts.sweep import journal
from prune.entry import main

load = Streamed._load
left = int(os.environ.get("LAYERS", "0"))
dies = os.environ.get("KILL") == os.environ.get("RANK", "0")


def counted(weights: Any, layer: int) -> None:
    """Read a layer; the last one that is allowed is the end."""
    global left
    load(weights, layer)
    left -= 1
    if dies and left == 0:
        if "CTRL_C" in os.environ:
            os.kill(os.getppid(), signal.SIGINT)
        else:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    journal.EVERY = 0.0
    Streamed._load = counted  # type: ignore[method-assign]
    sys.exit(main())
