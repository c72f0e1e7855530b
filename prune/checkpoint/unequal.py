"""Text of the `modeling_excise.py` of a checkpoint whose layers keep unequal numbers of experts."""

from string import Template

MODELING = Template('''"""$architecture whose MoE layers hold unequal numbers of experts.

config.excise_experts has their number, by decoder layer. Every layer is built at full size and resized before
its weights are loaded. Load with trust_remote_code=True.
"""

import re

import torch
import transformers

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "out_features")


# Of the library's own name: by it transformers renames the tensors of some classes.
class $architecture(transformers.$architecture):
    @classmethod
    def is_custom_code(cls):  # the tensors are named and fused as the library's own class has them
        return False

    def __init__(self, config):
        super().__init__(config)
        self.resize_experts()

    def resize_experts(self):
        for name, block in self.named_modules():
            layer = re.search(r"\\.layers\\.(\\d+)(\\.[^.]+)?$$", name)
            if layer and hasattr(block, "experts") and layer.group(1) in self.config.excise_experts:
                resize(block, $experts, self.config.excise_experts[layer.group(1)])

    @classmethod
    def _load_pretrained_model(cls, model, *arguments, **options):
        model.resize_experts()  # again: quantisers have put modules of full size in the place of others
        return super()._load_pretrained_model(model, *arguments, **options)


def resize(block, before, after):
    if isinstance(block.experts, torch.nn.ModuleList):  # transformers 4
        block.experts = block.experts[:after]
    for path, module in block.named_modules():
        if holds_experts(path):
            resize_tensors(module, before, after)
            for key in COUNTS:
                if vars(module).get(key) == before:
                    setattr(module, key, after)


def holds_experts(path):
    """Whether a module of a block, by its path there, is the block, its router, or holds all experts."""
    first, *rest = path.split(".")
    one_expert = first == "experts" and rest and rest[0].isdigit()
    if one_expert or "shared" in path or "post_expert_norm" in path:
        return False
    return path == "" or not {"experts", "gate", "router", "moe_statics"}.isdisjoint([first, *rest])


def resize_tensors(module, before, after):
    for table in (module._parameters, module._buffers):
        for key, tensor in table.items():
            axis = expert_axis(() if tensor is None else tensor.shape, before)
            if axis is not None:
                smaller = tensor.detach().narrow(axis, 0, after).clone()
                if table is module._parameters:
                    smaller = torch.nn.Parameter(smaller, requires_grad=tensor.requires_grad)
                table[key] = smaller


def expert_axis(shape, experts):
    """The first axis, or the one behind axes of length 1."""
    for axis, size in enumerate(shape):
        if size == experts and set(shape[:axis]) <= {1}:
            return axis
    return None
''')


def modeling_source(architecture: str, num_experts: int) -> str:
    """Python source of a model class whose layers are resized to `config.excise_experts`.

    Args:
        architecture: class of transformers that it extends.
        num_experts: experts of a layer before pruning.
    """
    return MODELING.substitute(architecture=architecture, experts=num_experts)
