"""A synthetic checkpoint in the shape of DeepSeek-V3 on the hub, in FP8, with random bytes for weights.

Names, types and order are the hub's: experts one by one, `weight` in F8_E4M3 with a `weight_scale_inv` in F32
per block of 128 × 128, router with `e_score_correction_bias`, groups, a dense first layer, and a
multi-token-prediction layer behind `num_hidden_layers`. Sizes are parameters, so that a disk holds it;
nothing here uses Excise, so that it can stand as evidence about it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.shards import BLOCK, Spec, quantised, size, write_shard


@dataclass(frozen=True)
class DeepSeek:
    """layers: decoder layers, the first of them dense; one more for multi-token prediction follows."""

    hidden: int = 2048
    inner: int = 512
    layers: int = 6
    experts: int = 256
    top_k: int = 8
    groups: int = 8
    vocabulary: int = 16_384
    shards: int = 8

    @property
    def moe_layers(self) -> range:
        return range(1, self.layers)

    @property
    def config(self) -> dict[str, object]:
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "hidden_size": self.hidden,
            "moe_intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_nextn_predict_layers": 1,
            "first_k_dense_replace": 1,
            "n_routed_experts": self.experts,
            "n_shared_experts": 1,
            "num_experts_per_tok": self.top_k,
            "n_group": self.groups,
            "topk_group": max(1, self.groups // 2),
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "vocab_size": self.vocabulary,
            "quantization_config": {
                "fmt": "e4m3",
                "quant_method": "fp8",
                "weight_block_size": [BLOCK, BLOCK],
            },
        }

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(map(size, self.specs()))

    def specs(self) -> Iterator[Spec]:
        yield "model.embed_tokens.weight", "BF16", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            yield from self._layer(f"model.layers.{layer}", dense=layer == 0)
        yield "model.norm.weight", "BF16", (self.hidden,)
        yield "lm_head.weight", "BF16", (self.vocabulary, self.hidden)
        behind = f"model.layers.{self.layers}"
        for name in ("enorm", "hnorm", "shared_head.norm"):
            yield f"{behind}.{name}.weight", "BF16", (self.hidden,)
        yield f"{behind}.eh_proj.weight", "BF16", (self.hidden, 2 * self.hidden)
        yield from self._layer(behind, dense=False)

    def _layer(self, prefix: str, dense: bool) -> Iterator[Spec]:
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{name}.weight", "BF16", (self.hidden,)
        for name in ("q_a_proj", "o_proj"):
            yield from quantised(f"{prefix}.self_attn.{name}", self.hidden, self.hidden)
        if dense:
            yield from self._mlp(f"{prefix}.mlp", 4 * self.inner)
            return
        yield f"{prefix}.mlp.gate.weight", "BF16", (self.experts, self.hidden)
        yield f"{prefix}.mlp.gate.e_score_correction_bias", "F32", (self.experts,)
        for expert in range(self.experts):
            yield from self._mlp(f"{prefix}.mlp.experts.{expert}", self.inner)
        yield from self._mlp(f"{prefix}.mlp.shared_experts", self.inner)

    def _mlp(self, prefix: str, inner: int) -> Iterator[Spec]:
        yield from quantised(f"{prefix}.gate_proj", inner, self.hidden)
        yield from quantised(f"{prefix}.up_proj", inner, self.hidden)
        yield from quantised(f"{prefix}.down_proj", self.hidden, inner)

    def kept(self, seed: int = 1) -> dict[str, list[int]]:
        """Half of every router group in every MoE layer, at random: `kept` of a plan."""
        rng, per_group = np.random.default_rng(seed), self.experts // self.groups
        return {
            str(layer): [
                group * per_group + int(i)
                for group in range(self.groups)
                for i in np.sort(rng.choice(per_group, per_group // 2, replace=False))
            ]
            for layer in self.moe_layers
        }

    def write(self, folder: Path) -> None:
        """config.json, index, shards of about equal size, and a tokenizer file."""
        folder.mkdir(parents=True, exist_ok=True)
        specs = list(self.specs())
        total, weights, position = sum(map(size, specs)), {}, 0
        shards: dict[str, list[Spec]] = {}
        for spec in specs:
            number = min(self.shards, position * self.shards // total + 1)
            weights[spec[0]] = f"model-{number:05}-of-{self.shards:05}.safetensors"
            shards.setdefault(weights[spec[0]], []).append(spec)
            position += size(spec)
        for seed, (name, inside) in enumerate(shards.items()):
            rng = np.random.default_rng(seed)
            write_shard(folder / name, inside, lambda spec, rng=rng: rng.bytes(size(spec)))
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": weights})
        )
        (folder / "tokenizer.json").write_text(
            json.dumps({"version": "1.0", "model": {"vocab": {str(i): i for i in range(1000)}}})
        )
        (folder / "config.json").write_text(json.dumps(self.config, indent=2))
