"""Every causal-LM type of the installed transformers that routes through the experts interface, built small by its own configuration class."""

import inspect
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

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
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
# What else a type needs to be small, to have an MoE layer at all, or to pass its own checks.
OWN: dict[str, dict[str, Any]] = {
    "beam": {"mlp_layer_types": ["dense", "sparse", "sparse"], "n_group": 2, "topk_group": 1},
    "deepseek_v3": {"n_group": 2},
    "gemma4_text": {"enable_moe_block": True, "global_head_dim": 8, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 259},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "layer_types": ["attention", "mamba", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "full_attention"], "num_dense_layers": 1},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
# Types that wrap a language model of their own type, and come in the table under that.
WRAPPERS = {"dots3_note": "dots3_note_text", "gemma4": "gemma4_text", "qwen3_5_moe": "qwen3_5_moe_text", "qwen4_exp": "qwen4_exp_text"}

# Multimodal wrappers without a causal-LM class of their own, whose towers can be built small.
MULTIMODAL = ("aria", "glm4v_moe", "inkling2", "minimax_m3_vl", "mistral_large4", "qwen3_vl_moe")
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "depth": 1,
    "num_hidden_layers": 1,
    "num_heads": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 40,
    "out_hidden_size": 32,
    "text_hidden_size": 32,
    "projection_dim": 32,
    "deepstack_visual_indexes": [0],
}
MARKERS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "image_token_index")
SECTIONED = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}


def types() -> list[str]:
    """Names for AutoConfig.for_model, in alphabetical order."""
    root = Path(inspect.getfile(transformers)).parent / "models"
    marked = {path.parent.name for path in root.glob("*/modeling_*.py") if MARK in path.read_text(encoding="utf-8")}
    names = {name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if model_type_to_module_name(name) in marked}
    return sorted(names - WRAPPERS.keys())


def known(kind: type, sizes: dict[str, Any]) -> dict[str, Any]:
    """Those of the sizes that a configuration class takes."""
    taken = inspect.signature(kind.__init__).parameters
    return {name: value for name, value in sizes.items() if name in taken}


def language(kind: type) -> dict[str, Any]:
    """Small sizes of a language model."""
    sizes = known(kind, GENERIC)
    return sizes | ({"num_key_value_heads": sizes["num_attention_heads"]} if "kv_lora_rank" in sizes else {})  # one latent for all heads


def build(model_type: str) -> PreTrainedModel:
    """A random float32 model of a causal-LM type."""
    sizes = language(type(AutoConfig.for_model(model_type))) | OWN.get(model_type, {})
    return _random(AutoModelForCausalLM, AutoConfig.for_model(model_type, **sizes))


def build_multimodal(model_type: str) -> PreTrainedModel:
    """A random float32 wrapper: its language model small as above, its towers of one layer."""
    whole = AutoConfig.for_model(model_type)
    parts: dict[str, Any] = {}
    for name in type(whole).sub_configs:
        kind = type(getattr(whole, name))
        parts[name] = language(kind) if name == "text_config" else known(kind, TOWER)
        if name == "text_config" and model_type in ("glm4v_moe", "qwen3_vl_moe"):
            parts[name]["rope_parameters"] = SECTIONED
    parts |= known(type(whole), dict.fromkeys(MARKERS, 251))
    return _random(AutoModelForImageTextToText, AutoConfig.for_model(model_type, **parts))


def _random(auto: Any, config: Any) -> PreTrainedModel:
    """What starts at 0, biases of routers and some routers among it, is random too, so that it matters."""
    torch.manual_seed(0)
    model: PreTrainedModel = auto.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and ("bias" in name or not tensor.any()):
                tensor.normal_(std=0.1)
    return model
