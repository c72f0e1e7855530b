"""Whether transformers can read a model: known before anything is downloaded or loaded."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from experts.disk.hub_files import reads_text
from experts.errors import ExciseError


def check_loadable(
    config: Mapping[str, Any],
    names: Collection[str],
    where: str,
    trust_remote_code: bool = False,
) -> None:
    """Refuse an unknown model type, code that may not be run, and a missing tokenizer.

    In this order: a tokenizer cannot be loaded without the model type either, and would be blamed for it.

    Args:
        config: of config.json
        names: of the files beside it
        where: the model's name, for errors
        trust_remote_code: whether code that comes with the checkpoint may be run
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and not _is_known(model_type):
        _check_own_code(config, model_type, where, trust_remote_code)
    if not reads_text(names):
        raise ExciseError(
            f"{where}: no tokenizer files (tokenizer.json, tokenizer.model, vocab.*); "
            "add those of the original model"
        )


def _check_own_code(config: Mapping[str, Any], model_type: str, where: str, trust_remote_code: bool) -> None:
    """Of a type that transformers does not know: it has to come with code, and that has to be trusted."""
    own_classes = config.get("auto_map")
    if not isinstance(own_classes, Mapping) or "AutoConfig" not in own_classes:
        raise ExciseError(
            f"{where}: the model cannot be loaded: "
            f"transformers {_version()} knows no model_type {model_type!r}; another one may"
        )
    if not trust_remote_code:
        raise ExciseError(
            f"{where}: model_type {model_type!r} needs Python code that comes with the checkpoint, "
            "which is run only if you say so: read it, then put `trust_remote_code: true` "
            "into the recipe (--set trust_remote_code=true), or give `excise effects` --trust-remote-code"
        )


def _is_known(model_type: str) -> bool:
    """By transformers' own list: first its part that is data, because what code adds to it takes torch."""
    with suppress(ImportError):  # where that list is kept is not promised
        from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES

        if model_type in CONFIG_MAPPING_NAMES:
            return True
    from transformers import CONFIG_MAPPING  # with what a user's own package registered

    return model_type in CONFIG_MAPPING


def _version() -> str:
    from transformers import __version__

    return str(__version__)
