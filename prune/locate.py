"""From what a user writes to folders: recipes by name, models by hub id, folder or `demo`. No torch."""

import sysconfig
from pathlib import Path

from experts.errors import ExciseError

PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]


def recipes_folder() -> Path:
    """The recipes of this checkout, or those an installed wheel put under share/."""
    checkout = Path(__file__).resolve().parent.parent / "recipes"
    return checkout if checkout.is_dir() else Path(sysconfig.get_path("data")) / "share" / "excise" / "recipes"


def recipe_file(name: str) -> Path:
    """A path to a YAML file, or the name of a recipe that comes with Excise."""
    path = Path(name)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    shipped = {file.stem: file for file in sorted(recipes_folder().glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    raise ExciseError(f"{name}: no such recipe file, and no recipe of that name; there are {', '.join(shipped) or 'none'}")


def model_folder(name: str) -> Path:
    """The local folder of a model; a hub id is downloaded (or found in the cache) first."""
    if name == "demo":
        return recipes_folder() / "demo" / "model"
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise ExciseError(f"{name}: no such model folder")
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=PATTERNS))
    except LocalEntryNotFoundError as error:
        raise ExciseError(f"{name}: no such folder, not in the local hub cache, and the hub cannot be reached") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ExciseError(f"{name}: cannot be downloaded ({str(error).strip().splitlines()[0]})") from error
