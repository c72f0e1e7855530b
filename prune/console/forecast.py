"""What `--dry-run` prints."""

from typing import TYPE_CHECKING

from prune.console import show

if TYPE_CHECKING:
    from prune.session.prepared import Checked


def show_forecast(command: str, checked: "Checked", as_json: bool) -> None:
    """What a command will read, compute and write, and what it takes; what it would refuse is refused."""
    from prune.forecast.forecast import forecast
    from prune.forecast.words import words
    from prune.session.text_rehearsal import rehearse_texts

    rehearse_texts(command, checked)
    result = forecast(command, checked)
    if as_json:
        show.print_json(result)
        return
    lines = words(result)
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in lines))
    show.notes(result["notes"])
