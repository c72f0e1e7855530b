"""`excise init`: writes the file; refuses a name that is taken, or no recipe's."""

from pathlib import Path

import yaml

from experts.errors import ExciseError
from prune.machine import place_of
from prune.recipe.read import parse_recipe
from prune.session.run_folder import write_text
from prune.starter.commented import commented_recipe
from prune.starter.facts import facts_of


def write_starter(model: str, output: Path, force: bool = False) -> None:
    """Write a commented recipe for a model.

    Args:
        model: folder, `demo`, or name on the hub.
        force: replace a file.

    Raises:
        ExciseError: the file exists, or there is no such model.
    """
    if output.suffix not in (".yaml", ".yml"):
        raise ExciseError(f"{output}: the name of a recipe ends in .yaml")
    if output.is_dir():
        raise ExciseError(f"{output}: is a folder; name a file")
    if output.exists() and not force:
        raise ExciseError(f"{output}: exists; choose another --output, or --force to replace it")
    folder = place_of(output.parent)
    if not folder.is_dir():
        raise ExciseError(f"{output}: {folder} is a file, not a folder; choose another --output")
    text = commented_recipe(facts_of(model), str(output))
    parse_recipe(yaml.safe_load(text), str(output), output.parent)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, text)
