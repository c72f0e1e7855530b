"""Tiny random models of the supported architectures, built by transformers' own configuration classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 259  # 256 bytes and three specials: a byte-level tokenizer needs no training

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 256,
    "initializer_range": 0.2,
}
GROUPED = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "intermediate_size": 40,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 24},
    "qwen2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "intermediate_size": 40,
        "shared_expert_intermediate_size": 20,
    },
    "qwen3_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "intermediate_size": 40,
        "head_dim": 8,
    },
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 24},
    "deepseek_v2": {**GROUPED, **LATENT},
    "deepseek_v3": {
        **GROUPED,
        **LATENT,
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
    },
    "glm4_moe": {**GROUPED, "n_group": 1, "topk_group": 1, "head_dim": 8},
    "gpt_oss": {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "intermediate_size": 24,
        "head_dim": 8,
        "sliding_window": 8,
    },
}


def build(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model in float32; correction biases are random too, so that they matter."""
    torch.manual_seed(seed)
    settings = {**COMMON, **FAMILIES[family], **changes}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **settings), dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(
                ("e_score_correction_bias", "gate_up_proj_bias", "down_proj_bias", "router.bias", "sinks")
            ):
                tensor.normal_(std=0.3)
    return model


def build64(family: str) -> PreTrainedModel:
    """In float64, for comparisons to rounding; torch's grouped kernel knows no float64, so experts run one by
    one.
    """
    model = build(family).double()
    model.set_experts_implementation("eager")
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")


def save(
    model: PreTrainedModel,
    folder: Path,
    edit_config: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> Path:
    model.save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return folder


def ids(batch: int = 2, length: int = 24, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: torch.Tensor | None = None) -> torch.Tensor:
    return model(input_ids=ids() if tokens is None else tokens, use_cache=False).logits
