"""Text of the `modeling_excise.py` that travels with a checkpoint whose layers keep unequal numbers of experts."""

from string import Template

MODELING = Template('''"""$architecture whose MoE layers hold unequal numbers of experts (config.excise_experts: layer -> count).

Every layer is built at full size and resized before its weights are loaded. Load with trust_remote_code=True.
"""

import re

import torch
import transformers


class $architecture(transformers.$architecture):  # of the same name: transformers renames the tensors of some classes by it
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
        if "shared" in path or "post_expert_norm" in path or (path.startswith("experts.") and path.split(".")[1].isdigit()):
            continue
        if path and not {"experts", "gate", "router", "moe_statics"} & set(path.split(".")):
            continue
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                axis = expert_axis(() if tensor is None else tensor.shape, before)
                if axis is not None:
                    smaller = tensor.detach().narrow(axis, 0, after).clone()
                    parameter = table is module._parameters
                    table[key] = torch.nn.Parameter(smaller, requires_grad=tensor.requires_grad) if parameter else smaller
        for key in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "out_features"):
            if vars(module).get(key) == before:
                setattr(module, key, after)


def expert_axis(shape, experts):
    """The first axis, or the one behind axes of length 1."""
    return next((axis for axis, size in enumerate(shape) if size == experts and set(shape[:axis]) <= {1}), None)
''')


def modeling_source(architecture: str, experts: int) -> str:
    """Python source of a model class whose layers, of `experts` experts, are resized to `config.excise_experts`."""
    return MODELING.substitute(architecture=architecture, experts=experts)
