"""The way from a recipe's name to its checked model, the same for every command that takes a recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prune.recipe.schema import Recipe
    from prune.session.prepared import Checked, Prepared


@dataclass(frozen=True)
class Call:
    """A command with a recipe.

    Attributes:
        command: prune, compare, audit or finetune.
        recipe: a file, or the name of a recipe that comes with Excise.
        output: where to work; None = the command's default.
        overrides: `key.path=value`.
        force: replace what is there.
    """

    command: str
    recipe: str
    output: Path | None
    overrides: Sequence[str]
    force: bool

    def checked(self) -> "Checked":
        """What can be refused in a second is refused here, from headers alone."""
        from prune.recipe.read import read_recipe, recipe_file
        from prune.session.checked import checked_for

        file = recipe_file(self.recipe)
        settings = read_recipe(file, self.overrides)
        default = _default_folder(self.command, file.stem, settings)
        return checked_for(self.command, settings, self.output or default, self.force)

    def prepared(self) -> "Prepared":
        """The same with the model's weights here."""
        return fetched(self.command, self.checked())


def fetched(command: str, checked: "Checked") -> "Prepared":
    """A checked recipe with its weights, after the last look at what an export would be refused for."""
    from prune.session.checked import rehearse

    rehearse(command, checked)
    return checked.fetch()


def _default_folder(command: str, name: str, recipe: "Recipe") -> Path:
    """Where a command works; `finetune` refuses a recipe without training here."""
    from prune.session.outputs import default_output, recovery_output

    if command == "prune":
        return default_output(name, recipe)
    if command == "finetune":
        folder, _ = recovery_output(name, recipe)
        return folder
    return Path("runs") / f"{name}-{command}"
