"""Which weights recovery adapts: what the words of a recipe mean in the model at hand, found by structure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from experts.anatomy import Anatomy
from experts.disk.tensors import in_decoder, name_in_layer
from experts.errors import SettingError
from finetune.settings import GROUPS, ROUTER_ONLY

ATTENTION = re.compile(r"attn|attention|(^|\.)[qkvo]_proj$", re.IGNORECASE)
Groups = dict[str, list[str]]  # attention, router, experts -> full names


@dataclass(frozen=True)
class Targets:
    """Full names of what is adapted.

    Attributes:
        modules: linear layers
        parameters: weights that are no linear layer's: routers [E, H], fused experts [E, …, …]
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...]

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights that a merge changes."""
        return (*(f"{name}.weight" for name in self.modules), *self.parameters)


def find_targets(anatomy: Anatomy, wanted: tuple[str, ...]) -> Targets:
    """Find what the words of a recipe mean in this model, inside its decoder layers.

    - attention: linear layers under a module called …attn… or …attention…, or called q_proj and the like
    - router, router_only: the routers' rows [E, H]
    - experts: their fused parameters [E, …, …]
    - anything else: the end of a linear layer's or weight's name (q_proj, mlp.gate.weight)

    Args:
        anatomy: of the model, with or without weights
        wanted: words of the recipe

    Raises:
        SettingError: a word matches nothing in this model.
    """
    linear, weights = _linear_layers(anatomy.model), _weights(anatomy.model)
    groups = _groups(anatomy, linear)
    names: list[str] = []
    for word in wanted:
        matches = _matches(word, groups, (*linear, *weights))
        if not matches:
            there = _listed(linear, weights, groups)
            raise SettingError(f"targets: {word!r} matches nothing in this model; there is {there}")
        names += matches
    return _without_repeats(names, set(linear), set(weights))


def _linear_layers(model: nn.Module) -> list[str]:
    """Linear layers of the decoder layers; never of a tower for images or sound."""
    modules = model.named_modules()
    return [name for name, module in modules if isinstance(module, nn.Linear) and in_decoder(name)]


def _weights(model: nn.Module) -> list[str]:
    """Weights of 2 or 3 dimensions of the decoder layers; never of a tower for images or sound."""
    parameters = model.named_parameters()
    return [name for name, parameter in parameters if parameter.ndim in (2, 3) and in_decoder(name)]


def _groups(anatomy: Anatomy, linear: list[str]) -> Groups:
    """What the words that name a group mean."""
    module_names = {id(module): name for name, module in anatomy.model.named_modules()}
    parameter_names = {id(parameter): name for name, parameter in anatomy.model.named_parameters()}
    routers, experts = [], []
    for layer in anatomy.layers:
        routers.append(f"{module_names[id(layer.router)]}.weight")
        fused = [weight for weight in layer.weights.values() if weight.ndim == 3]
        experts += [parameter_names[id(weight)] for weight in fused]
    attention = [name for name in linear if ATTENTION.search(name_in_layer(name))]
    return {"attention": attention, "router": routers, "experts": experts}


def _matches(word: str, groups: Groups, names: Iterable[str]) -> list[str]:
    """What a word names."""
    group = "router" if word == ROUTER_ONLY else word
    if group in groups:
        return groups[group]
    return [name for name in names if name == word or name.endswith(f".{word}")]


def _without_repeats(names: list[str], linear: set[str], weights: set[str]) -> Targets:
    """What was named twice, or as a layer and as its weight, is adapted once."""
    unique = list(dict.fromkeys(names))
    modules = tuple(name for name in unique if name in linear)
    parameters = tuple(
        name for name in unique if name in weights and name.removesuffix(".weight") not in modules
    )
    return Targets(modules, parameters)


def _listed(linear: list[str], weights: list[str], groups: Groups) -> str:
    """The groups that are not empty, and every name once, without its layer."""
    of_layers = {f"{name}.weight" for name in linear}
    others = [name for name in weights if name not in of_layers]
    names = dict.fromkeys(name_in_layer(name) for name in (*linear, *others))
    return ", ".join([*(group for group in GROUPS if groups[group]), *names])
