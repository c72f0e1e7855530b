"""A refit on disk: what a run that is taken up again need not solve twice."""

import json
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from experts.files import replacing
from experts.plan import Plan
from finetune.refit.result import Refit, RefittedLayer

NAME = "layer"


def save_refit(refit: Refit, path: Path) -> None:
    """Write a refit: its weights, a tensor per layer, and what is known of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = [_numbers(layer) for layer in refit.layers]
    said = {"key": refit.key, "digest": refit.digest, "text": refit.text, "layers": numbers}
    tensors = {f"{NAME}.{layer.layer}": layer.weights.contiguous() for layer in refit.layers}
    with replacing(path) as fresh:
        save_file(tensors, fresh, {"refit": json.dumps(said)})


def stored_refit(path: Path, plan: Plan, key: str, fingerprint: str) -> Refit | None:
    """The refit that a file holds; None where there is none of this plan, text, model and settings.

    Args:
        path: the file
        plan: what is kept
        key: identity of model, text and settings
        fingerprint: of the unpruned model
    """
    with suppress(OSError, ValueError, KeyError, SafetensorError), safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["refit"])
        layers = [
            _layer({**numbers, "weights": file.get_tensor(f"{NAME}.{numbers['layer']}")})
            for numbers in said["layers"]
        ]
        refit = Refit(plan, tuple(layers), said["text"], said["key"], fingerprint)
        if refit.key == key and refit.digest == said["digest"]:
            return refit
    return None


def _numbers(layer: RefittedLayer) -> dict[str, Any]:
    return {part.name: getattr(layer, part.name) for part in fields(layer) if part.name != "weights"}


def _layer(values: dict[str, Any]) -> RefittedLayer:
    tuples = {name: tuple(values[name]) for name in ("rows", "unchanged")}
    return RefittedLayer(**{**values, **tuples})
