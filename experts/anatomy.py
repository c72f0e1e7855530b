"""Load a model and find its layers of routed experts, by structure alone.

An experts module is one that transformers routes through its experts interface (`transformers.integrations.moe`): it carries the
marks which that decorator leaves, holds parameters with the expert axis first and is called with hidden states [T, H], expert
ids [T, k] and gate weights [T, k]. Its parent is the MoE block; the router is the sibling with a weight of E rows.
"""

import re
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from experts.disk.configuration import (
    COMMON,
    COUNT_KEYS,
    ROUTER_TENSORS,
    ROUTERS,
    TOP_K_KEYS,
    expert_axis,
    in_tower,
    router_groups,
)
from experts.disk.strict_json import read_object
from experts.disk.weight_files import entry_file, regular_files
from experts.errors import ExciseError, let_through, one_line
from experts.plain_outputs import set_plain_outputs
from experts.shape import Shape

MOST_EXTRA = 8  # rows of a router for other than routed experts
ALIGNMENT = 64  # bytes; of every allocation of torch


@dataclass(frozen=True)
class MoELayer:
    """One MoE block. `router_tensors` lists (module, tensor name) of everything outside the experts with E entries on axis 0."""

    index: int
    name: str
    block: nn.Module
    experts: nn.Module
    router: nn.Module
    router_tensors: tuple[tuple[nn.Module, str], ...]

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters of the experts, all with the expert axis in front, by their names in the experts module."""
        return {
            name: parameter
            for name, parameter in self.experts.named_parameters()
            if COMMON not in name.split(".")
        }

    @property
    def counters(self) -> list[tuple[nn.Module, str]]:
        """Integer attributes of the block and its router-side modules that hold E."""
        modules = {
            id(module): module for module in (self.block, *(module for module, _ in self.router_tensors))
        }
        return [
            (module, key)
            for module in modules.values()
            for key in COUNT_KEYS
            if isinstance(vars(module).get(key), int)
        ]


@dataclass(frozen=True)
class Anatomy:
    """A model and its L MoE layers. Of a pruned model with unequal layers, the shape holds the largest E."""

    model: PreTrainedModel
    layers: tuple[MoELayer, ...]
    shape: Shape

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device


def load(
    folder: Path, dtype: str = "auto", trust_remote_code: bool = False, device: torch.device | None = None
) -> PreTrainedModel:
    """The model of a local checkpoint folder, in evaluation mode; without a `device`, on the GPU if it fits there.

    Its forwards give logits and nothing else (experts/plain_outputs.py).
    """
    config = read_object(
        folder / "config.json", "no such file; a checkpoint folder has config.json and *.safetensors"
    )
    entry_file(
        regular_files(folder), config, str(folder)
    )  # refuses what transformers would read in another way
    try:
        auto = _auto_class(AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code))
        model, report = auto.from_pretrained(
            folder, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(
                f"{len(missing)} weights of {type(model).__name__} are not in it and would be random, {missing[0]} among them"
            )
        model.to(device or torch.device(_device(model))).eval()
        _align(model)
        set_plain_outputs(model)
    except torch.OutOfMemoryError as error:
        raise ExciseError(
            f"{folder}: not enough memory on the GPU ({one_line(error)}); set CUDA_VISIBLE_DEVICES= to use the CPU"
        ) from error
    except Exception as error:  # of files that do not fit together transformers raises anything
        let_through(error)
        raise ExciseError(
            f"{folder}: {_own_code(error) or f'the model cannot be loaded ({one_line(error)})'}"
        ) from error
    found: PreTrainedModel = model
    return found


def _own_code(error: BaseException) -> str:
    """What to do where transformers refuses to run code that comes with a checkpoint; empty for any other error."""
    if "trust_remote_code" not in str(error):
        return ""
    return (
        "needs Python code that comes with the checkpoint, which is run only if you say so: read it, then put `trust_remote_code: true` "
        "into the recipe (--set trust_remote_code=true), or give `excise effects` --trust-remote-code"
    )


def _auto_class(config: Any) -> Any:
    """The class that reads text: of a multimodal wrapper without one of its own, the one that reads images as well."""
    mapped = AutoModelForImageTextToText._model_mapping
    other = type(config) in mapped and type(config) not in AutoModelForCausalLM._model_mapping
    return AutoModelForImageTextToText if other else AutoModelForCausalLM


@torch.no_grad()
def _align(model: Any) -> None:
    """Weights that lie anywhere in a file's buffer are copied to where torch would put them.

    CPU kernels round by the alignment of their operands: the same weights, read behind a header of another length, would give other logits.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


def skeleton(folder: Path, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model without its weights: modules, names and shapes, in the time it takes to read a configuration."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model: PreTrainedModel = _auto_class(config).from_config(
                config, trust_remote_code=trust_remote_code
            )
    except Exception as error:
        let_through(error)
        raise ExciseError(
            f"{folder}: {_own_code(error) or f'the model cannot be loaded ({one_line(error)})'}"
        ) from error
    return model


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a local checkpoint folder."""
    if not any(
        file for pattern in ("tokenizer*", "vocab*", "*.model", "*.tiktoken") for file in folder.glob(pattern)
    ):
        # transformers would make an empty tokenizer of the model's class.
        raise ExciseError(
            f"{folder}: no tokenizer files (tokenizer.json, tokenizer.model, vocab.*); add those of the original model"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code
        )
        tokens = tokenizer("A text.", add_special_tokens=False)["input_ids"]
    except Exception as error:  # tokenizers raises bare ones
        let_through(error)
        raise ExciseError(
            f"{folder}: {_own_code(error) or f'the tokenizer cannot be loaded ({one_line(error)})'}"
        ) from error
    if not tokens:
        raise ExciseError(
            f"{folder}: its tokenizer files make an empty {type(tokenizer).__name__}, which reads no text; "
            "add all files of the original model"
        )
    return tokenizer


def _device(model: Any) -> str:
    """`cuda` where the weights leave a fifth of the GPU's free memory for the work, else `cpu`."""
    if not torch.cuda.is_available():
        return "cpu"
    free, _ = torch.cuda.mem_get_info()
    return "cuda" if model.get_memory_footprint() < 0.8 * free else "cpu"


def dissect(model: PreTrainedModel, pruned: bool = False) -> Anatomy:
    """Finds the MoE layers. Raises ExciseError for a dense model or one whose experts bypass the interface.

    pruned: layers may hold different numbers of experts; E is then the largest. From here on the model's forwards give
    logits and nothing else (experts/plain_outputs.py).
    """
    set_plain_outputs(model)
    modules = dict(model.named_modules())
    layers = tuple(
        _layer(name, modules)
        for name, module in modules.items()
        if _is_experts(module) and not in_tower(name)
    )
    config = model.config.get_text_config()
    if not layers:
        raise ExciseError(_why_none(config))
    if twins := [(one, two) for one, two in combinations(layers, 2) if one.index == two.index]:
        one, two = (layer.name for layer in twins[0])
        raise ExciseError(
            f"{config.model_type}: two MoE blocks in one decoder layer ({one}, {two}); this layout is not supported"
        )
    counts = {layer.index: _expert_count(layer.experts) for layer in layers}
    if len(set(counts.values())) > 1 and not pruned:
        raise ExciseError(
            f"the MoE layers have different numbers of experts ({counts}): prune the original model, not a pruned one"
        )
    groups, top_groups = router_groups(config.to_dict())
    shape = Shape(tuple(counts), max(counts.values()), _top_k(config, layers[0]), groups, top_groups)
    return Anatomy(model, layers, shape)


def _is_experts(module: nn.Module) -> bool:
    return hasattr(module, "_is_expert_parallel") and hasattr(type(module).forward, "__wrapped__")


def _expert_count(experts: nn.Module) -> int:
    return int(next(experts.parameters()).shape[0])


def _top_k(config: Any, layer: MoELayer) -> int:
    for owner in (layer.router, layer.block, config):
        for key in ("top_k", *TOP_K_KEYS):
            if isinstance(value := getattr(owner, key, None), int):
                return value
    raise ExciseError(
        f"{layer.name}: cannot tell how many experts are active per token (no top_k in router or config)"
    )


def _layer(name: str, modules: dict[str, nn.Module]) -> MoELayer:
    experts, parent = modules[name], name.rpartition(".")[0]
    block, count = modules[parent], _expert_count(modules[name])
    tensors = _router_tensors(parent, block, experts, count)
    routers = [module for module, key in tensors if key == "weight" and getattr(module, key).ndim == 2]
    if len(routers) != 1:
        raise ExciseError(
            f"{parent}: {_wrong_routers(block, experts, count, len(routers))}; this routing is not supported"
        )
    numbers = re.findall(r"\.(\d+)(?=\.|$)", parent)
    if len(numbers) != 1:
        raise ExciseError(f"{parent}: cannot tell the decoder layer from the module's name")
    layer = MoELayer(int(numbers[0]), parent, block, experts, routers[0], tensors)
    for key, parameter in layer.weights.items():
        if parameter.shape[:1] != (count,):
            raise ExciseError(
                f"{name}.{key} has shape {tuple(parameter.shape)}: no expert axis of {count} in front, so it cannot be cut"
            )
    return layer


def _wrong_routers(block: nn.Module, experts: nn.Module, count: int, found: int) -> str:
    """Why a block has no single router; some choose among shared or skipped experts as well."""
    inside = {id(parameter) for parameter in experts.parameters()}
    rows = {
        name: len(p)
        for name, p in block.named_parameters()
        if p.ndim == 2 and id(p) not in inside and "shared" not in name
    }
    more = {name: n for name, n in rows.items() if count < n <= count + MOST_EXTRA}
    if found or not more:
        return f"found {found} routers with {count} rows, expected one"
    name = min(more, key=lambda name: more[name])
    return f"its router ({name}) has {more[name]} rows for {count} experts, some for shared or skipped ones"


def _router_tensors(
    parent: str, block: nn.Module, experts: nn.Module, count: int
) -> tuple[tuple[nn.Module, str], ...]:
    inside = {id(module) for module in experts.modules()}
    whole_layer = re.search(r"\.\d+$", parent) is not None  # the experts stand in the decoder layer itself
    found: list[tuple[nn.Module, str]] = []
    for path, module in block.named_modules():
        if id(module) in inside or "shared" in path:
            continue
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            name = ".".join(part for part in (parent, path, key) if part)
            if whole_layer and not ROUTERS.intersection(path.split(".")):
                continue  # attention and norms may have that many rows by chance
            if not tensor.is_floating_point() and tensor.ndim == 2:
                raise ExciseError(
                    f"{name} is a table of whole numbers, as routers use that choose experts by token id; it cannot be cut"
                )
            if expert_axis(tensor.shape, count) is not None:
                if key not in ROUTER_TENSORS:
                    raise ExciseError(
                        f"{name} has {count} rows and is not a known router tensor: refusing to prune around it"
                    )
                found.append((module, key))
    return tuple(found)


def expert_rows(tensor: torch.Tensor, kept: tuple[int, ...], experts: int) -> torch.Tensor:
    """The kept experts' part of a tensor with an expert axis of length `experts`, as a tensor of its own."""
    axis = expert_axis(tensor.shape, experts)
    assert axis is not None, "found by structure"
    return tensor.detach().index_select(axis, torch.tensor(kept, device=tensor.device))


def _why_none(config: Any) -> str:
    keys = [key for key in COUNT_KEYS if getattr(config, key, None)]
    if keys:
        return (
            f"{config.model_type}: a mixture of experts ({keys[0]} = {getattr(config, keys[0])}) outside transformers' experts "
            "interface; Excise can neither watch nor edit its routing"
        )
    return f"{config.model_type}: a dense model, without routed experts; there is nothing to prune"
