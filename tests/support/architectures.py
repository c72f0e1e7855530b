"""Every causal-LM type of the installed transformers that routes through the experts interface, built small
by its own configuration class.
"""

import functools
import inspect
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

MARK = "use_experts_implementation"  # what the source of a model says that routes through the interface

# Small sizes under every name that configurations use; a type takes those it knows.
GENERIC: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 256,
    "initializer_range": 0.2,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "top_k_experts": 2,
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 20,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "head_dim": 8,
    "n_group": 2,
    "num_expert_group": 2,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
# Attention over a window with sizes of its own.
SLIDING: dict[str, Any] = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
}
# What else a type needs to be small, to have an MoE layer at all, or to pass its own checks.
OWN: dict[str, dict[str, Any]] = {
    "beam": {"mlp_layer_types": ["dense", "sparse", "sparse"]},
    "dots3_note_text": SLIDING,
    "flint": {"mlp_only_layers": [0]},
    "gemma4_text": {
        "enable_moe_block": True,
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 259,
    },
    "granitemoehybrid": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_expand": 2,
        "layer_types": ["attention", "mamba", "attention"],
    },
    "jamba": {"expert_layer_period": 1, "expert_layer_offset": 0},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "full_attention"], "num_dense_layers": 1},
    "nemotron_h": {
        "layers_block_type": ["full_attention", "moe", "mlp", "moe"],
        "moe_latent_size": 16,
    },  # experts in a space of their own
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


def types() -> list[str]:
    """Language models, as names for AutoConfig.for_model, in alphabetical order.

    Some are filed under those that read images only.
    """
    return [name for name, kind in marked().items() if "text_config" not in kind.sub_configs]


@functools.cache
def marked() -> dict[str, type[PreTrainedConfig]]:
    """Every type with a class for text, alone or beside images, whose source has experts behind the
    interface, and its configuration.
    """
    root = Path(inspect.getfile(transformers)).parent / "models"
    sources = {
        path.parent.name for path in root.glob("*/modeling_*.py") if MARK in path.read_text(encoding="utf-8")
    }
    names = (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    return {
        name: type(AutoConfig.for_model(name))
        for name in sorted(set(names))
        if model_type_to_module_name(name) in sources
    }


def known(kind: type, sizes: dict[str, Any]) -> dict[str, Any]:
    """Those of the sizes that a configuration class takes."""
    taken = inspect.signature(kind.__init__).parameters
    return {name: value for name, value in sizes.items() if name in taken}


def language(kind: type) -> dict[str, Any]:
    """Small sizes of a language model."""
    sizes = known(kind, GENERIC)
    return sizes | (
        {"num_key_value_heads": sizes["num_attention_heads"]} if "kv_lora_rank" in sizes else {}
    )  # one latent for all heads


def build(model_type: str) -> PreTrainedModel:
    """A random float32 model of a causal-LM type."""
    sizes = language(type(AutoConfig.for_model(model_type))) | OWN.get(model_type, {})
    auto = (
        AutoModelForCausalLM
        if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        else AutoModelForImageTextToText
    )
    return randomised(auto, AutoConfig.for_model(model_type, **sizes))


def randomised(auto: Any, config: Any) -> PreTrainedModel:
    """What starts at 0, biases of routers and some routers among it, is random too, so that it matters."""
    torch.manual_seed(0)
    model: PreTrainedModel = auto.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and ("bias" in name or not tensor.any()):
                tensor.normal_(std=0.1)
    return model
