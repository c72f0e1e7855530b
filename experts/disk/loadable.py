"""Whether transformers can read a model, told before anything is downloaded or loaded. No torch."""

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
    """Refuses an unknown model type, code that may not be run, and a missing tokenizer.

    In this order: a tokenizer cannot be loaded without the model type either, and would be blamed for it.
    names: of the files beside config.json; where: the model's name.
    """
    kind, own = config.get("model_type"), config.get("auto_map")
    if isinstance(kind, str) and not _known(kind):
        if not isinstance(own, Mapping) or "AutoConfig" not in own:
            told = f"transformers {_version()} knows no model_type {kind!r}; another one may"
            raise ExciseError(f"{where}: the model cannot be loaded: {told}")
        if not trust_remote_code:
            raise ExciseError(
                f"{where}: model_type {kind!r} needs Python code that comes with the checkpoint, "
                "which is run only if you say so: read it, then put `trust_remote_code: true` "
                "into the recipe (--set trust_remote_code=true), or give `excise effects` --trust-remote-code"
            )
    if not reads_text(names):
        wanted = "tokenizer.json, tokenizer.model, vocab.*"
        raise ExciseError(f"{where}: no tokenizer files ({wanted}); add those of the original model")


def _known(kind: str) -> bool:
    """By transformers' own list: its part that is data first, because what code adds to it takes torch."""
    with suppress(ImportError):  # where that list stands is not promised
        from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES

        if kind in CONFIG_MAPPING_NAMES:
            return True
    from transformers import CONFIG_MAPPING  # with what a user's own package registered

    return kind in CONFIG_MAPPING


def _version() -> str:
    from transformers import __version__

    return str(__version__)
