"""Text of the `modeling_excise.py` that travels with a checkpoint whose layers keep unequal numbers of experts."""

from string import Template

MODELING = Template('''"""$architecture whose MoE layers hold unequal numbers of experts (config.excise_experts: layer -> count).

Every layer is built at full size and resized before its weights are loaded. Load with trust_remote_code=True.
"""

import re

import torch
from transformers import $architecture


class ExciseForCausalLM($architecture):
    def __init__(self, config):
        super().__init__(config)
        for name, block in self.named_modules():
            layer = re.search(r"\\.layers\\.(\\d+)\\.[^.]+$$", name)
            if layer and hasattr(block, "experts") and layer.group(1) in config.excise_experts:
                resize(block, config.$count_key, config.excise_experts[layer.group(1)])


def resize(block, before, after):
    if isinstance(block.experts, torch.nn.ModuleList):  # transformers 4
        block.experts = block.experts[:after]
    for path, module in block.named_modules():
        if "shared" in path or (path.startswith("experts.") and path.split(".")[1].isdigit()):
            continue
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                if tensor is not None and tensor.shape[:1] == (before,):
                    smaller = tensor.detach()[:after].clone()
                    table[key] = torch.nn.Parameter(smaller) if table is module._parameters else smaller
        for key in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "out_features"):
            if vars(module).get(key) == before:
                setattr(module, key, after)
''')


def modeling_source(architecture: str, count_key: str) -> str:
    """Python source of a model class whose layers are resized to `config.excise_experts`."""
    return MODELING.substitute(architecture=architecture, count_key=count_key)
