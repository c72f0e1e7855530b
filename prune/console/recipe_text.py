"""The recipe that a model got, as the user may keep it."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prune.session.prepared import Checked


def show_recipe(checked: "Checked", quiet: bool) -> None:
    """On stderr, in YAML; the run folder keeps the same."""
    if quiet:
        return
    import yaml

    settings = checked.recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    settings["criteria"] = list(checked.recipe.criteria)
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    print(f"# The recipe of this run, kept in {checked.folder.path}/recipe.yaml:\n{text}", file=sys.stderr)
