"""`excise inspect`."""

from prune.console import show
from prune.console.exits import guarded
from prune.console.options import Debug, Json, Model


def inspect(model: Model, as_json: Json = False, debug: Debug = False) -> None:
    """Family, layers, experts, sizes, and what pruning would save: from headers and configuration alone."""

    def work() -> int:
        from prune.inspect import inspect_model

        facts = inspect_model(model)
        show.print_json(facts) if as_json else show.model(facts)
        return 0

    guarded(work, True, debug)
