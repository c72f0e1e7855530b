"""Shapes of models on the hub: every tensor's name, type and shape, and the configuration.

Nothing here uses Excise, so that it can stand as evidence about it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.shards import BLOCK, Spec, quantised

MATRICES = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Softmax:
    """Attention with keys of their own, a softmax router, experts one by one, all in bfloat16.

    The defaults are OLMoE-1B-7B's: 13.8 GB.
    """

    model_type: str = "olmoe"
    architecture: str = "OlmoeForCausalLM"
    layers: int = 16
    experts: int = 64
    top_k: int = 8
    hidden: int = 2048
    inner: int = 1024
    inner_key: str = "intermediate_size"
    heads: int = 16
    key_heads: int = 16
    head: int = 128
    norms: tuple[int, int] = (2048, 2048)  # of queries and of keys
    vocabulary: int = 50_304

    @property
    def config(self) -> dict[str, Any]:
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "dtype": "bfloat16",
            "num_hidden_layers": self.layers,
            "num_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "hidden_size": self.hidden,
            self.inner_key: self.inner,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": self.head,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
            "pad_token_id": None,
            "eos_token_id": None,
        }

    def specs(self) -> Iterator[Spec]:
        yield "model.embed_tokens.weight", "BF16", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            yield from self._layer(f"model.layers.{layer}")
        yield "model.norm.weight", "BF16", (self.hidden,)
        yield "lm_head.weight", "BF16", (self.vocabulary, self.hidden)

    def _layer(self, prefix: str) -> Iterator[Spec]:
        queries, keys = self.heads * self.head, self.key_heads * self.head
        attention = f"{prefix}.self_attn"
        yield f"{attention}.q_proj.weight", "BF16", (queries, self.hidden)
        yield f"{attention}.k_proj.weight", "BF16", (keys, self.hidden)
        yield f"{attention}.v_proj.weight", "BF16", (keys, self.hidden)
        yield f"{attention}.o_proj.weight", "BF16", (self.hidden, queries)
        yield f"{attention}.q_norm.weight", "BF16", (self.norms[0],)
        yield f"{attention}.k_norm.weight", "BF16", (self.norms[1],)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{name}.weight", "BF16", (self.hidden,)
        yield f"{prefix}.mlp.gate.weight", "BF16", (self.experts, self.hidden)
        for expert in range(self.experts):
            for name in MATRICES:
                shape = (self.hidden, self.inner) if name == "down_proj" else (self.inner, self.hidden)
                yield f"{prefix}.mlp.experts.{expert}.{name}.weight", "BF16", shape


OLMOE = Softmax()
QWEN3_30B = Softmax(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    layers=48,
    experts=128,
    inner=768,
    inner_key="moe_intermediate_size",
    heads=32,
    key_heads=4,
    norms=(128, 128),
    vocabulary=151_936,
)


@dataclass(frozen=True)
class DeepSeekV3:
    """DeepSeek-V3 in FP8 without its layer for multi-token prediction: 673 GB."""

    layers: int = 61
    dense: int = 3  # of them, the first ones
    experts: int = 256
    hidden: int = 7168

    @property
    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "dtype": "bfloat16",
            "num_hidden_layers": self.layers,
            "first_k_dense_replace": self.dense,
            "hidden_size": self.hidden,
            "intermediate_size": 18432,
            "moe_intermediate_size": 2048,
            "n_routed_experts": self.experts,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "n_group": 8,
            "topk_group": 4,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "vocab_size": 129_280,
            "quantization_config": {
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "quant_method": "fp8",
                "weight_block_size": [BLOCK, BLOCK],
            },
        }

    def specs(self) -> Iterator[Spec]:
        yield "model.embed_tokens.weight", "BF16", (129_280, self.hidden)
        for layer in range(self.layers):
            yield from self._layer(f"model.layers.{layer}", dense=layer < self.dense)
        yield "model.norm.weight", "BF16", (self.hidden,)
        yield "lm_head.weight", "BF16", (129_280, self.hidden)

    def _layer(self, prefix: str, dense: bool) -> Iterator[Spec]:
        yield from self._attention(f"{prefix}.self_attn")
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{name}.weight", "BF16", (self.hidden,)
        if dense:
            yield from self._mlp(f"{prefix}.mlp", 18432)
            return
        yield f"{prefix}.mlp.gate.weight", "BF16", (self.experts, self.hidden)
        yield f"{prefix}.mlp.gate.e_score_correction_bias", "F32", (self.experts,)
        yield from self._mlp(f"{prefix}.mlp.shared_experts", 2048)
        for expert in range(self.experts):
            yield from self._mlp(f"{prefix}.mlp.experts.{expert}", 2048)

    def _attention(self, prefix: str) -> Iterator[Spec]:
        yield from quantised(f"{prefix}.q_a_proj", 1536, self.hidden)
        yield from quantised(f"{prefix}.q_b_proj", 24_576, 1536)
        yield from quantised(f"{prefix}.kv_a_proj_with_mqa", 576, self.hidden)
        yield from quantised(f"{prefix}.kv_b_proj", 32_768, 512)
        yield from quantised(f"{prefix}.o_proj", self.hidden, 16_384)
        yield f"{prefix}.q_a_layernorm.weight", "BF16", (1536,)
        yield f"{prefix}.kv_a_layernorm.weight", "BF16", (512,)

    def _mlp(self, prefix: str, inner: int) -> Iterator[Spec]:
        for name in MATRICES:
            shape = (self.hidden, inner) if name == "down_proj" else (inner, self.hidden)
            yield from quantised(f"{prefix}.{name}", *shape)
