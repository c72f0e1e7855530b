"""transformers' own way from the tensors of a checkpoint to those of a network, held on to for later.

`from_pretrained` builds a network, then hands all tensors of its files to one function, which renames, fuses,
dequantises, casts and puts them into the modules. That function is replaced here, while `from_pretrained`
runs, by a dry run without data, and so is the opening of files; nothing else of the library is. It is called
later with the tensors of single layers.
"""

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor
from transformers import core_model_loading, modeling_utils
from transformers.utils import logging as library_logging

from experts.errors import ExciseError

FUNCTION = "convert_and_load_state_dict_in_model"
OPENS = "safe_open"
WITHOUT_THREADS = "HF_DEACTIVATE_ASYNC_LOAD"  # a variable of the environment that transformers looks at
# What is called here: owner, name, and parameters that it has to have.
NEEDED: tuple[tuple[Any, str, tuple[str, ...]], ...] = (
    (modeling_utils, FUNCTION, ("model", "state_dict", "load_config", "disk_offload_index")),
    (modeling_utils, OPENS, ()),
    (
        core_model_loading,
        "rename_source_key",
        ("source_key", "weight_renamings", "weight_converters", "base_model_prefix", "meta_state_dict"),
    ),
    (core_model_loading, "WeightConverter", ()),
    (core_model_loading, "WeightRenaming", ()),
    (modeling_utils, "LoadStateDictConfig", ("device_map", "weight_mapping")),
    (library_logging, "set_tqdm_hook", ("hook",)),
)


def check_library() -> None:
    """Refuse versions of transformers that load weights in another way.

    Raises:
        ExciseError: a function is missing, or takes other parameters.
    """
    for owner, name, parameters in NEEDED:
        if not _has(owner, name, parameters):
            raise ExciseError(
                f"transformers {transformers.__version__} loads weights in another way than Excise knows "
                f"(no {owner.__name__}.{name}({', '.join(parameters)})), "
                "so layers cannot be read one by one; use `memory.model: resident`, "
                "or install the version that constraints.txt names"
            )


@dataclasses.dataclass
class Conversion:
    """From tensors of a checkpoint to those of its network.

    Attributes:
        network: the model that is being loaded
        settings: transformers' own (`LoadStateDictConfig`): renamings, fusions, types
        convert: the library's function
        missing: weights of the network that no tensor of the checkpoint becomes; tied ones are among them
    """

    network: Any
    settings: Any
    convert: Callable[..., Any]
    missing: frozenset[str] = frozenset()

    def load(self, tensors: Mapping[str, Any], device: torch.device) -> Any:
        """Put tensors of the checkpoint into the network.

        Args:
            tensors: by their names in the checkpoint; slices of a file are read here
            device: where they go

        Returns:
            transformers' report (`LoadStateDictInfo`). What was not among the tensors counts as missing.
        """
        settings = dataclasses.replace(self.settings, device_map={"": device})
        with _no_progress_bar(), _threads(device.type not in ("cpu", "meta")):
            report, _ = self.convert(self.network, dict(tensors), settings, None)
        return report

    def targets(self, names: Iterable[str]) -> dict[str, str]:
        """Tensor of the checkpoint -> the weight of the network that it becomes, or becomes a part of.

        Tensors that the network has no place for are left out.
        """
        entries = self.settings.weight_mapping or []
        renamings = [entry for entry in entries if isinstance(entry, core_model_loading.WeightRenaming)]
        converters = [entry for entry in entries if isinstance(entry, core_model_loading.WeightConverter)]
        weights = self.network.state_dict()
        found = {}
        for name in names:
            target = self._renamed(name, renamings, converters, weights)
            if target not in weights and name in weights:
                target = self._renamed(name, [], [], weights)
            if target in weights:
                found[name] = target
        return found

    def _renamed(self, name: str, renamings: list[Any], converters: list[Any], weights: Any) -> str:
        prefix = self.network.base_model_prefix
        target, _ = core_model_loading.rename_source_key(name, renamings, converters, prefix, weights)
        return str(target)


@contextmanager
def without_data(headers: Mapping[str, Tensor]) -> Iterator[list[Conversion]]:
    """Inside the block `from_pretrained` reads no weights: it converts tensors on the device `meta`.

    What it checks of names and shapes, and how it refuses them, is as ever.

    Args:
        headers: the checkpoint's tensors without their data, by name

    Yields:
        A list, in which the conversion is found afterwards.
    """
    check_library()
    convert = getattr(modeling_utils, FUNCTION)
    made: list[Conversion] = []

    def dry_run(
        model: Any,
        state_dict: Any,  # noqa: ARG001 - with data, which is not read now
        load_config: Any,
        disk_offload_index: Any = None,
    ) -> tuple[Any, Any]:
        conversion = Conversion(model, load_config, convert)
        report = conversion.load(headers, torch.device("meta"))
        conversion.missing = frozenset(report.missing_keys)
        made.append(conversion)
        return report, disk_offload_index

    with (
        mock.patch.object(modeling_utils, FUNCTION, dry_run),
        mock.patch.object(modeling_utils, OPENS, _Unopened),
    ):
        yield made


class _Unopened:
    """A file of weights that is not opened: mapping all of them would count against limits of memory."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def keys(self) -> list[str]:
        return []

    def __exit__(self, *_: object) -> None:
        pass


def _has(owner: Any, name: str, parameters: tuple[str, ...]) -> bool:
    """Whether a module has this function or class, with these parameters."""
    found = getattr(owner, name, None)
    if found is None or not parameters:
        return found is not None
    return set(parameters) <= set(inspect.signature(found).parameters)


@contextmanager
def _threads(allowed: bool) -> Iterator[None]:
    """Whether transformers may read with several threads.

    Each has a heap of its own, which keeps what is freed: half a layer more in main memory.
    """
    if allowed or WITHOUT_THREADS in os.environ:
        yield
        return
    os.environ[WITHOUT_THREADS] = "1"
    try:
        yield
    finally:
        del os.environ[WITHOUT_THREADS]


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Single layers are no progress that anyone waits for."""

    def silent(make: Callable[..., Any], args: Any, options: dict[str, Any]) -> Any:
        return make(*args, **{**options, "disable": True})

    before = library_logging.set_tqdm_hook(silent)
    try:
        yield
    finally:
        library_logging.set_tqdm_hook(before)
