"""How many windows of text a refit needs, and what for."""

from typing import Literal

from experts.errors import ExciseError

Counts = Literal["scores", "refitted"]  # how the experts kept in each layer are counted, as `prune.counts`
FEWEST: dict[Counts, tuple[int, str]] = {
    "scores": (2, "a refit needs at least 2, to choose λ on one by the other"),
    "refitted": (3, "counts per layer need at least 3: two to refit on, one to judge by"),
}


def check_fewest(windows: int, counts: Counts = "scores") -> None:
    """Refuse text of too few windows.

    Raises:
        ExciseError: there are fewer than FEWEST.
    """
    fewest, why = FEWEST[counts]
    if windows < fewest:
        raise ExciseError(f"text has {windows} window{'' if windows == 1 else 's'}; {why}")
