"""A refit on disk: what a run that is taken up again need not solve twice."""

import json
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from experts.files import replacing
from experts.inner_activations import DOWN
from experts.plan import Plan
from finetune.distill.settings import Local
from finetune.distill.train import Distilled
from finetune.refit.result import Refit, RefittedLayer

TENSORS = ("weights", "others")


def save_refit(refit: Refit, path: Path) -> None:
    """Write a refit: its weights, a tensor per layer, and what is known of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {
        "key": refit.key,
        "digest": refit.digest,
        "text": refit.text,
        "form": refit.form,
        "local": None if refit.local is None else asdict(refit.local),
        "layers": [_numbers(layer) for layer in refit.layers],
    }
    tensors = {
        f"{layer.layer}.{name}": weights.contiguous()
        for layer in refit.layers
        for name, weights in layer.changed.items()
    }
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
        layers = tuple(_layer(numbers, file) for numbers in said["layers"])
        local = None if said["local"] is None else Local(**said["local"])
        refit = Refit(plan, layers, said["text"], said["key"], fingerprint, local, said["form"])
        if refit.key == key and refit.digest == said["digest"]:
            return refit
    return None


def _numbers(layer: RefittedLayer) -> dict[str, Any]:
    """All but the tensors, and the names of these."""
    kept = {part.name: getattr(layer, part.name) for part in fields(layer) if part.name not in TENSORS}
    trained = None if layer.distilled is None else asdict(layer.distilled)
    return {**kept, "distilled": trained, "others": list(layer.others)}


def _layer(numbers: dict[str, Any], file: Any) -> RefittedLayer:
    """A layer from what `_numbers` says and the tensors of a file."""
    number, trained = numbers["layer"], numbers["distilled"]
    given = {
        "rows": tuple(numbers["rows"]),
        "unchanged": tuple(numbers["unchanged"]),
        "weights": file.get_tensor(f"{number}.{DOWN}"),
        "distilled": None if trained is None else Distilled(**trained),
        "others": {name: file.get_tensor(f"{number}.{name}") for name in numbers["others"]},
    }
    return RefittedLayer(**{**numbers, **given})
