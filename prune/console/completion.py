"""What a shell may put behind `excise …` when Tab is pressed: names that are quick to find."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prune.starter.request import shipped_recipes

DEMO = "demo"


def recipes(incomplete: str) -> list[str]:
    """Recipes that come with Excise, and YAML files."""
    return _beginning(incomplete, [*shipped_recipes(), *_yaml_files(incomplete)])


def models(incomplete: str) -> list[str]:
    """The demo, models in the local cache of the hub, and folders that hold one."""
    return _beginning(incomplete, [DEMO, *_cached_models(), *_model_folders(incomplete)])


def recipes_and_models(incomplete: str) -> list[str]:
    """Both, recipes first."""
    return list(dict.fromkeys([*recipes(incomplete), *models(incomplete)]))


def criteria(incomplete: str) -> list[str]:
    """Names of the registry."""
    from criteria.registry import CRITERIA

    return _beginning(incomplete, CRITERIA)


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _inside(incomplete: str) -> list[Path]:
    """What stands in the folder that is being typed."""
    with suppress(OSError, ValueError):
        return sorted(
            Path(incomplete.rpartition("/")[0] or ("/" if incomplete[:1] == "/" else ".")).iterdir()
        )
    return []


def _yaml_files(incomplete: str) -> list[str]:
    return [str(path) for path in _inside(incomplete) if path.suffix in (".yaml", ".yml")]


def _model_folders(incomplete: str) -> list[str]:
    """Folders with a config.json."""
    with suppress(OSError):
        return [str(path) for path in _inside(incomplete) if (path / "config.json").is_file()]
    return []


def _cached_models() -> list[str]:
    """organisation/name of every model that was downloaded before."""
    with suppress(Exception):  # a wrong setting in the environment must not break the shell
        from huggingface_hub import constants

        folders = sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*"))
        return [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]
    return []
