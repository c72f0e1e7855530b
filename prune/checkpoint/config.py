"""The config.json of a pruned checkpoint: the source's, changed where it counts or numbers experts."""

import copy
from pathlib import Path
from typing import Any

from experts.disk.configuration import COUNT_KEYS, PREDICTING_KEYS, UNEQUAL, positive_int, text_config
from experts.disk.layout import Layout
from experts.errors import ExciseError
from experts.plan import Plan
from prune.checkpoint.quantization import QUANTIZATION_KEYS, renumber, without
from prune.checkpoint.run_options import corrected_options
from prune.checkpoint.slices import by_name, slice_layout

# transformers files some language models under the second one only.
READERS = ("AutoModelForCausalLM", "AutoModelForImageTextToText")


def patched_config(layout: Layout, plan: Plan, *, dequantise: bool = False) -> dict[str, Any]:
    """The source's configuration as the pruned model needs it.

    Equal counts change the number of experts; unequal ones are listed per layer and point to
    modeling_excise.py. Quantisation settings get the experts' new numbers, prediction layers that are gone
    are counted as 0, and options under which the pruned model could not run are corrected.

    Args:
        dequantise: experts that the source stores quantised are written in bfloat16.

    Raises:
        ExciseError: unequal counts without an architecture to build on, or a quantisation pattern that names
            single experts.
    """
    config: dict[str, Any] = copy.deepcopy(dict(layout.checkpoint.config))
    text: Any = text_config(config)
    tables = [config] if text is config else [config, text]
    if plan.uniform:
        _set_count(text, layout.shape.num_experts, next(iter(plan.counts.values())))
    else:
        config[UNEQUAL] = {str(layer): count for layer, count in sorted(plan.counts.items())}
        config["auto_map"] = _auto_map(config, layout.checkpoint.folder)
    _renumber_quantization(tables, plan, layout.checkpoint.folder)
    if dequantise:
        _exempt_experts(tables, layout, plan)
    if layout.predicting:
        _drop_prediction_layers(tables)
    for key, value in corrected_options(config, plan).items():
        for table in tables:
            if key in table:
                table[key] = value
    return config


def _set_count(text: Any, before: int, after: int) -> None:
    """Change the number of experts, in the form it has: some configurations list it for every layer."""
    for key in COUNT_KEYS:
        if positive_int(text, key) == before:
            text[key] = [after] * len(text[key]) if isinstance(text[key], list) else after


def _auto_map(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Our class, built on the library's own architecture, beside what the source maps besides models.

    The source's own code for models is dropped: whoever trusts our file did not ask for that one.
    """
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(architecture, str) or not architecture.isidentifier():
        raise ExciseError(
            f"{folder}/config.json: no architecture named, which unequal counts per layer need; "
            "use scope layer"
        )
    before = config.get("auto_map")
    mapped = before if isinstance(before, dict) else {}
    others = {key: name for key, name in mapped.items() if not _is_model(key)}
    return {**others, **dict.fromkeys(READERS, f"modeling_excise.{architecture}")}


def _is_model(key: str) -> bool:
    """Whether an entry of auto_map names a configuration or a model, not a tokenizer or a processor."""
    return key == "AutoConfig" or key.startswith("AutoModel")


def _renumber_quantization(tables: list[Any], plan: Plan, folder: Path) -> None:
    for table in tables:
        for key in QUANTIZATION_KEYS:
            settings = table.get(key)
            if isinstance(settings, dict):
                table[key] = renumber(settings, plan, f"{folder}/config.json: {key}")


def _exempt_experts(tables: list[Any], layout: Layout, plan: Plan) -> None:
    """Quantisation settings no longer mean the experts; where nothing else is quantised they go."""
    pieces = by_name(slice_layout(layout, plan, dequantise=True)).values()
    modules = [f"{block.prefix}.experts" for _, block in sorted(layout.blocks.items())]
    for table in tables:
        for key in QUANTIZATION_KEYS:
            if not isinstance(table.get(key), dict):
                continue
            if left := without(table[key], modules, pieces):
                table[key] = left
            else:
                del table[key]


def _drop_prediction_layers(tables: list[Any]) -> None:
    for table in tables:
        for key in PREDICTING_KEYS:
            if table.get(key):
                table[key] = 0
