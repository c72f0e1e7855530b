"""What `excise prune` is asked for: a recipe, or a model and what to do with it."""

from dataclasses import dataclass
from pathlib import Path

from experts.disk.names import HubName, commit_of, parse_model, recipes_folder
from experts.errors import ExciseError


@dataclass(frozen=True)
class Wishes:
    """The options of a model that has no recipe.

    Attributes:
        fraction: share of the experts to remove.
        keep: experts kept per layer.
        target_size: largest size of all weights together, for example 8GB.
        criterion: name of the criterion that prunes.
        text: file of plain text, for calibration and for the test; None = the model's own text, and the
            standard library of Python.
    """

    fraction: float | None = None
    keep: int | None = None
    target_size: str | None = None
    criterion: str | None = None
    text: Path | None = None

    @property
    def given(self) -> list[str]:
        """The options that were used, as they are written."""
        names = ("fraction", "keep", "target_size", "criterion", "text")
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]

    @property
    def budgets(self) -> list[str]:
        """The options among them that say how much to remove."""
        return [option for option in self.given if option in ("--fraction", "--keep", "--target-size")]


def is_recipe(name: str) -> bool:
    """Whether the first argument means a recipe.

    Recipes that come with Excise win over folders of that name, as they always did.
    """
    path = Path(name)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return True
    return name in shipped_recipes()


def shipped_recipes() -> list[str]:
    """The names of the recipes that come with Excise."""
    return sorted(file.stem for file in recipes_folder().glob("*.yaml"))


def model_name(text: str) -> str:
    """A model's name in a recipe: an absolute folder, or its name on the hub.

    Raises:
        ExciseError: there is no folder of that name, and it cannot be a name on the hub.
    """
    model = parse_model(text)
    return str(model) if isinstance(model, HubName) else str(model.absolute())


def subject_name(text: str) -> str:
    """The same where a recipe could have been named too: the refusal says which there are.

    Raises:
        ExciseError: there is no recipe and no folder of that name, and it cannot be a name on the hub.
    """
    try:
        return model_name(text)
    except ExciseError as error:
        if "://" in text or Path(text).exists():
            raise
        shipped = ", ".join(shipped_recipes()) or "none"
        raise ExciseError(
            f"{text}: no such recipe file, and no recipe of that name; there are {shipped}. "
            "Nor is it a model: name a folder, or organisation/name on the hub"
        ) from error


def short_name(model: str) -> str:
    """A model's name in that of its run folder."""
    name = parse_model(model)
    if isinstance(name, HubName):
        return name.id.rpartition("/")[2]
    folder = name.resolve()
    if commit_of(folder):  # …/models--organisation--name/snapshots/commit
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name
