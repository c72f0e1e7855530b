"""LoRA adapters (peft) on a pruned model: which weights they sit on, how they are put there, and how they are merged."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from experts.anatomy import Anatomy
from experts.disk.tensors import in_decoder, name_in_layer
from experts.errors import ExciseError
from experts.undo import Undo
from finetune.settings import GROUPS, ROUTER_ONLY, Training

NAME = "default"
ATTENTION = re.compile(r"attn|attention|(^|\.)[qkvo]_proj$", re.IGNORECASE)


@dataclass(frozen=True)
class Targets:
    """Full names of what is adapted: linear layers, and parameters that are no layer's (routers [E, H], fused experts [E, …])."""

    modules: tuple[str, ...]
    parameters: tuple[str, ...]

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights that a merge changes."""
        return (*(f"{name}.weight" for name in self.modules), *self.parameters)


@dataclass(frozen=True)
class Adapted:
    """A model with adapters. names: id of every module of the bare model -> its name there."""

    peft: PeftModel
    model: PreTrainedModel
    targets: Targets
    names: dict[int, str]


def find_targets(anatomy: Anatomy, wanted: tuple[str, ...]) -> Targets:
    """What the words of a recipe mean in this model, found by structure. Raises ExciseError for a name that matches nothing.

    attention: linear layers under a module called …attn… or …attention…, or called q_proj and the like; router: its [E, H] rows; experts:
    their fused 3-D parameters; else the end of a linear layer's or weight's name (q_proj, mlp.gate.weight), inside the decoder layers.
    """
    linear, weights = _available(anatomy.model)
    names = {
        id(part): name for name, part in (*anatomy.model.named_modules(), *anatomy.model.named_parameters())
    }
    known = {
        "attention": [name for name in linear if ATTENTION.search(name_in_layer(name))],
        "router": [f"{names[id(layer.router)]}.weight" for layer in anatomy.layers],
        "experts": [
            names[id(weight)]
            for layer in anatomy.layers
            for weight in layer.weights.values()
            if weight.ndim == 3
        ],
    }
    found: list[str] = []
    for word in wanted:
        group = "router" if word == ROUTER_ONLY else word
        matches = (
            known[group]
            if group in known
            else [n for n in (*linear, *weights) if n == word or n.endswith(f".{word}")]
        )
        if not matches:
            raise ExciseError(
                f"finetune.targets: {word!r} matches nothing in this model; there is {_listed(linear, weights, known)}"
            )
        found += matches
    modules = tuple(name for name in dict.fromkeys(found) if name in linear)
    return Targets(
        modules,
        tuple(
            name
            for name in dict.fromkeys(found)
            if name in weights and name.removesuffix(".weight") not in modules
        ),
    )


def _available(model: nn.Module) -> tuple[list[str], dict[str, torch.Size]]:
    """Linear layers, and weights of 2 or 3 dimensions, of the decoder layers; never of a tower for images or sound."""
    linear = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and in_decoder(name)
    ]
    weights = {name: p.shape for name, p in model.named_parameters() if p.ndim in (2, 3) and in_decoder(name)}
    return linear, weights


def _listed(linear: list[str], weights: dict[str, torch.Size], known: dict[str, list[str]]) -> str:
    """The groups that are not empty, and every name once, without its layer."""
    bare = {f"{name}.weight" for name in linear}
    names = dict.fromkeys(
        name_in_layer(name) for name in (*linear, *(name for name in weights if name not in bare))
    )
    return ", ".join([group for group in GROUPS if known[group]] + list(names))


def adapt(model: PreTrainedModel, targets: Targets, settings: Training, seed: int) -> Adapted:
    """Puts fresh adapters on the model: A random (seeded), B zero, so that nothing changes yet."""
    names = {id(module): name for name, module in model.named_modules()}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # a float serves as well
        target_modules=_shortened(targets.modules, list(names.values())),
        target_parameters=_shortened(targets.parameters, [name for name, _ in model.named_parameters()]),
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning
        )  # peft asks for it
        wrapped = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)
    return Adapted(wrapped, model, targets, names)


def _shortened(names: tuple[str, ...], everything: list[str]) -> list[str]:
    """Names without their layer where that means the same weights, so that an adapter's configuration can be read."""
    short = {name_in_layer(name) for name in names}
    same = {name for name in everything if any(name.endswith(f".{end}") for end in short)} == set(names)
    return sorted(short if same else names)


def tuned_layers(adapted: Adapted) -> Iterator[tuple[str, nn.Module, str, Any]]:
    """(name of the weight, module that holds it, its name there, peft layer) of every adapter."""
    for layer in adapted.peft.modules():
        if isinstance(layer, BaseTunerLayer):
            base = layer.get_base_layer()
            key = getattr(layer, "parameter_name", "weight")
            yield f"{adapted.names[id(base)]}.{key}", base, key, layer


@contextmanager
def merged(adapted: Adapted, rounded: Callable[[str, Tensor], Tensor]) -> Iterator[dict[str, Tensor]]:
    """Takes the adapters off; inside the block every adapted weight is W + (alpha / rank)·B·A, after it W. Gives the new weights by name.

    rounded(name, tensor): the precision the weight is stored in, so that what is in memory is what will be read back. The old tensors are
    replaced, not changed: they may be views of the teacher's.
    """
    weights = _merged_weights(adapted, rounded)
    remove(adapted)
    modules = dict(adapted.model.named_modules())
    with Undo() as undo:
        for name, tensor in weights.items():
            owner, _, key = name.rpartition(".")
            undo.replace(modules[owner]._parameters, key, nn.Parameter(tensor, requires_grad=False))
        yield weights


@torch.no_grad()
def _merged_weights(adapted: Adapted, rounded: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
    """The sums, added in float32."""
    weights = {}
    for name, base, key, layer in tuned_layers(adapted):
        weight: Tensor = getattr(base, key)
        wide = torch.promote_types(weight.dtype, torch.float32)
        total = rounded(name, weight.to(wide) + layer.get_delta_weight(NAME).to(wide))
        if not torch.isfinite(total).all():
            raise ExciseError(f"{name}: the merged weight is not finite; lower finetune.learning_rate")
        weights[name] = total.to(weight.dtype)
    return weights


def remove(adapted: Adapted) -> None:
    """Takes the adapters off without merging them: the model is as before."""
    adapted.peft.unload()
