"""`excise criteria`."""

from prune.console import show
from prune.console.criteria_listing import row_of
from prune.console.exits import guarded
from prune.console.options import Debug, Json


def criteria(as_json: Json = False, debug: Debug = False) -> None:
    """List the criteria: formula, evidence, cost in plain forwards of the calibration text, source."""

    def work() -> int:
        from criteria.registry import CRITERIA

        rows = [row_of(criterion) for criterion in CRITERIA.values()]
        show.print_json(rows) if as_json else show.criteria(rows)
        return 0

    guarded(work, True, debug)
