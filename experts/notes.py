"""Notes to the user during long work: a line on stderr beside the progress bars, and silent where those are."""

import os
import sys

from tqdm import tqdm


def tell(note: str) -> None:
    """Prints `note: …`, unless progress bars are switched off (--quiet)."""
    if not os.environ.get("TQDM_DISABLE"):
        tqdm.write(f"note: {note}", file=sys.stderr)
