"""`excise doctor`."""

from prune.console import show
from prune.console.exits import guarded, waiting
from prune.console.options import Debug, Json


def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Look at versions, devices, caches and disk: what would stop a run comes first, with the way out."""

    def work() -> int:
        from prune.doctor.examine import examine
        from prune.doctor.words import words

        with waiting("loading libraries", as_json):
            result = examine()
        if as_json:
            show.print_json(result)
        else:
            print("\n".join(words(result)))
        return 1 if result["problems"] else 0

    guarded(work, True, debug)
