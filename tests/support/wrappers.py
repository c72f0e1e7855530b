"""Multimodal models around a language model with routed experts, built small: every type of transformers that
has experts of its own, and some that wrap one.
"""

from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from tests.support.architectures import SLIDING, known, language, randomised

# Small sizes of a tower for images or sound, under every name that configurations use; a tower takes those it
# knows.
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "depth": 1,
    "num_hidden_layers": 1,
    "encoder_layers": 1,
    "num_heads": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "encoder_attention_heads": 4,
    "head_dim": 8,
    "intermediate_size": 40,
    "encoder_ffn_dim": 40,
    "d_model": 32,
    "out_hidden_size": 32,
    "output_dim": 32,
    "text_hidden_size": 32,
    "projection_dim": 32,
    "projection_intermediate_size": 40,
    "deepstack_visual_indexes": [0],
    "image_size": 56,
    "pos_emb_height": 4,
    "pos_emb_width": 4,
    "num_position_embeddings": 16,
    "position_embedding_size": 16,
    "downsample_hidden_size": 8,
    "conv_chunksize": 4,
    "adapter_in_dim": 32,
    "adapter_input_size": 32,
    "adapter_out_dim": 32,
}
MARKERS = (
    "image_token_id",
    "video_token_id",
    "audio_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "image_token_index",
)
SECTIONED = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [1, 1, 2],
        "partial_rotary_factor": 1.0,
    }
}
SPARSE = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
WINDOWED = {
    "output_channels": 16,
    "image_size": 64,
    "window_size": 2,
    "global_attn_indexes": [0],
    "mlp_dim": 40,
}  # SAM
# What a wrapper needs besides: of its own, and of its parts.
OWN: dict[str, dict[str, Any]] = {
    "aria": {},
    "deepseek_ocr2": {
        "text_config": SPARSE,
        "vision_config": {"sam_config": WINDOWED | {"downsample_channels": [16, 32]}},
    },
    "diffusion_gemma": {
        "text_config": {
            "num_hidden_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"],
            "global_head_dim": 8,
        }
    },
    "dots3_note": {
        "text_config": SLIDING,
        "vision_config": {
            "num_hidden_layers": 2,
            "mlp_layer_types": ["dense", "sparse"],
            "num_local_experts": 8,
        },
    },
    "ernie4_5_vl_moe": {"text_config": {"moe_intermediate_size": [24, 16], **SECTIONED}},
    "gemma4": {
        "text_config": {
            "enable_moe_block": True,
            "global_head_dim": 8,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 259,
            "pad_token_id": 0,
        },
        "vision_config": {"model_type": "gemma4_vision"},
    },
    "glm4v_moe": {"text_config": SECTIONED},
    "glm5_next": {
        "text_config": {
            "qk_rope_head_dim": 0,
            "layer_types": ["indexed_attention", "linear_attention", "indexed_attention"],
            "index_topk": 32,
            "index_head_dim": 8,
            "index_n_heads": 2,
            "index_kpool": 4,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "hc_mult": 2,
            **SPARSE,
        },
    },
    "inkling2": {},
    "inkling_mm_model": {},
    "kimi_k25": {"text_config": {"model_type": "deepseek_v3"}},
    "lfm2_vl": {
        "text_config": {
            "model_type": "lfm2_moe",
            "layer_types": ["conv", "full_attention", "full_attention"],
            "num_dense_layers": 1,
        }
    },
    "llava": {"text_config": {"model_type": "mixtral"}, "vision_config": {"model_type": "clip_vision_model"}},
    "minimax_m3_vl": {},
    "mistral_large4": {},
    "muse_spark": {
        "text_config": {"moe_hidden_size": 16},  # experts in a space of their own size
        "vision_config": {"max_position_embeddings": 16},
        "audio_config": {
            "patch_sizes": [4, 4],
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "num_hidden_layers": 2,
        },
        "out_hidden_size": 128,
        "projector_hidden_size": 32,
    },
    "qwen3_5_moe": {},
    "qwen3_omni_moe_thinker": {"text_config": SECTIONED},
    "qwen3_vl_moe": {"text_config": SECTIONED},
    "qwen4_exp": {},
    "unlimited_ocr": {
        "text_config": SPARSE,
        "vision_config": {"sam_config": WINDOWED | {"downsample_channels": [16, 32]}},
    },
}


def build(model_type: str) -> PreTrainedModel:
    """A random float32 wrapper: its language model as small as the others, its towers of one layer."""
    own = OWN[model_type]
    whole = type(AutoConfig.for_model(model_type))
    parts = {
        name: _part(whole, name, own.get(name, {}))
        for name in whole.sub_configs
        if name in own or _default(whole, name)
    }
    rest = {key: value for key, value in own.items() if key not in parts}
    config = AutoConfig.for_model(model_type, **known(whole, dict.fromkeys(MARKERS, 251)), **parts, **rest)
    return randomised(AutoModelForImageTextToText, config)


def _default(owner: type, name: str) -> Any:
    return getattr(owner(), name)


def _part(owner: type, name: str, own: dict[str, Any]) -> dict[str, Any]:
    """Sizes of a part of a configuration, and of the parts of that."""
    kind = (
        type(AutoConfig.for_model(own["model_type"])) if "model_type" in own else type(_default(owner, name))
    )
    if name == "text_config":
        return language(kind) | own
    parts = {inner: _part(kind, inner, own.get(inner, {})) for inner in kind.sub_configs}
    return known(kind, TOWER) | own | parts
