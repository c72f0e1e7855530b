"""`excise criteria`."""

from typing import Any

from prune.console import show
from prune.console.exits import guarded
from prune.console.options import Debug, Json

COLUMNS = ("name", "formula", "needs", "cost", "grows", "source")


def criteria(as_json: Json = False, debug: Debug = False) -> None:
    """List the criteria: formula, evidence, cost in plain forwards of the calibration text, source."""

    def work() -> int:
        from criteria.registry import CRITERIA

        rows = [{column: getattr(row, column) for column in COLUMNS} for row in CRITERIA.values()]
        settings = {name: row.experiment.options for name, row in CRITERIA.items() if row.experiment}
        if not as_json:
            show.criteria(rows, settings)
            return 0
        for row in rows:
            row["settings"] = _settings(settings.get(row["name"], {}))
        show.print_json(rows)
        return 0

    guarded(work, True, debug)


def _settings(options: Any) -> dict[str, Any]:
    return {name: {"default": option.default, "help": option.help} for name, option in options.items()}
