"""LoRA adapters (peft) on a pruned model: how they are put on, merged and taken off."""

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

from experts.disk.tensors import name_in_layer
from experts.errors import ExciseError
from experts.undo import Undo
from finetune.settings import Training
from finetune.targets import Targets

NAME = "default"  # of the adapter, in peft
Rounded = Callable[[str, Tensor], Tensor]  # (name, tensor) -> the tensor in the precision it is stored in


@dataclass(frozen=True)
class Adapted:
    """A model with adapters.

    Attributes:
        peft: the model as peft wraps it
        model: the model itself
        targets: what is adapted
        names: id of every module of the bare model -> its name there
    """

    peft: PeftModel
    model: PreTrainedModel
    targets: Targets
    names: dict[int, str]


def adapt(model: PreTrainedModel, targets: Targets, settings: Training, seed: int) -> Adapted:
    """Put fresh adapters on a model: A random, B zero, so that nothing changes yet.

    LoRA is that of https://arxiv.org/abs/2106.09685.

    Args:
        model: to be adapted in place
        targets: which weights
        settings: rank and alpha of the adapters
        seed: of A
    """
    names = {id(module): name for name, module in model.named_modules()}
    parameters = [name for name, _ in model.named_parameters()]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # a float serves as well
        target_modules=_shortened(targets.modules, list(names.values())),
        target_parameters=_shortened(targets.parameters, parameters),
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        # peft asks for it.
        deprecated = ".is_gradient_checkpointing. is deprecated"
        warnings.filterwarnings("ignore", message=deprecated, category=FutureWarning)
        wrapped = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)
    return Adapted(wrapped, model, targets, names)


def _shortened(names: tuple[str, ...], everything: list[str]) -> list[str]:
    """Names without their layer, where that means the same weights: a configuration that people can read."""
    short = {name_in_layer(name) for name in names}
    meant = {name for name in everything if any(name.endswith(f".{end}") for end in short)}
    return sorted(short if meant == set(names) else names)


@dataclass(frozen=True)
class TunedWeight:
    """A weight with its adapter.

    Attributes:
        name: full name of the weight in the bare model
        module: the module that holds it
        key: its name there
        layer: peft's layer, which knows the adapter
    """

    name: str
    module: nn.Module
    key: str
    layer: Any


def tuned_weights(adapted: Adapted) -> Iterator[TunedWeight]:
    """Yield every weight that has an adapter."""
    for layer in adapted.peft.modules():
        if isinstance(layer, BaseTunerLayer):
            module = layer.get_base_layer()
            key = getattr(layer, "parameter_name", "weight")
            yield TunedWeight(f"{adapted.names[id(module)]}.{key}", module, key, layer)


@contextmanager
def merged(adapted: Adapted, rounded: Rounded) -> Iterator[dict[str, Tensor]]:
    """Take the adapters off; inside the block every adapted weight is W + (alpha / rank)·B·A, after it W.

    The old tensors are replaced, not changed: they may be views of the teacher's.

    Args:
        adapted: the model with its adapters
        rounded: returns a weight in the precision it is stored in, so that what is in memory is what will be
            read back

    Yields:
        The new weights by name, in the model's precision.

    Raises:
        ExciseError: a merged weight is not finite.
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
def _merged_weights(adapted: Adapted, rounded: Rounded) -> dict[str, Tensor]:
    """The sums, added in at least float32."""
    weights = {}
    for tuned in tuned_weights(adapted):
        weight: Tensor = getattr(tuned.module, tuned.key)
        wide = torch.promote_types(weight.dtype, torch.float32)
        change = tuned.layer.get_delta_weight(NAME).to(wide)
        total = rounded(tuned.name, weight.to(wide) + change)
        if not torch.isfinite(total).all():
            what = f"{tuned.name}: the merged weight is not finite"
            raise ExciseError(f"{what}; lower finetune.learning_rate")
        weights[tuned.name] = total.to(weight.dtype)
    return weights


def remove(adapted: Adapted) -> None:
    """Take the adapters off without merging them: the model is as before."""
    adapted.peft.unload()
