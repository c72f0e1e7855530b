"""Checkpoints as they lie on the hub: every naming and quantisation, exported and compared byte by byte
through the reference reader.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import deserialize
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from experts.disk.layout import lay_out
from experts.disk.shards import open_checkpoint
from experts.errors import ExciseError
from experts.plan import Plan
from prune.checkpoint.write import export

E, H, I = 8, 16, 8  # noqa: E741 - experts, hidden and intermediate size
KEPT = (0, 2, 3, 5, 6, 7)
DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
}
CONFIG = {"num_hidden_layers": 2, "hidden_size": H, "num_experts_per_tok": 2, "vocab_size": 32}
Tensors = dict[str, tuple[str, tuple[int, ...]]]  # name -> dtype and shape


@dataclass(frozen=True)
class Format:
    """config: beside CONFIG; tensors: of one MoE layer by their names behind `prefix`; expert: what a name of
    one expert looks like.
    """

    config: dict[str, Any]
    block: str
    tensors: Callable[[], Tensors]
    prefix: str = "model.layers."


def single(
    dtypes: dict[str, tuple[str, tuple[int, ...]]],
    projections: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj"),
) -> Tensors:
    """Tensors of every expert, one by one: `dtypes` has what stands behind a projection's name."""
    return {
        f"experts.{e}.{p}.{key}": kind for e in range(E) for p in projections for key, kind in dtypes.items()
    }


GATE: Tensors = {"gate.weight": ("BF16", (E, H))}
FORMATS: dict[str, Format] = {
    "Qwen3-MoE": Format({"num_experts": E}, "mlp", lambda: {**GATE, **single({"weight": ("BF16", (I, H))})}),
    "Mixtral": Format(
        {"num_local_experts": E},
        "block_sparse_moe",
        lambda: {**GATE, **single({"weight": ("BF16", (I, H))}, ("w1", "w2", "w3"))},
    ),
    "DeepSeek-V3 FP8": Format(
        {"n_routed_experts": E, "n_group": 2, "topk_group": 1, "topk_method": "noaux_tc"},
        "mlp",
        lambda: {
            **GATE,
            "gate.e_score_correction_bias": ("F32", (E,)),
            "shared_experts.up_proj.weight": ("F8_E4M3", (I, H)),
            "shared_experts.up_proj.weight_scale_inv": ("F32", (1, 1)),
            **single({"weight": ("F8_E4M3", (I, H)), "weight_scale_inv": ("F32", (1, 1))}),
        },
    ),
    "GPTQ": Format(
        {"num_experts": E, "quantization_config": {"quant_method": "gptq", "bits": 4}},
        "mlp",
        lambda: {
            **GATE,
            **single(
                {
                    "qweight": ("I32", (2, I)),
                    "qzeros": ("I32", (1, 1)),
                    "scales": ("F16", (1, I)),
                    "g_idx": ("I32", (H,)),
                }
            ),
        },
    ),
    "AWQ": Format(
        {"num_experts": E, "quantization_config": {"quant_method": "awq", "bits": 4}},
        "mlp",
        lambda: {
            **GATE,
            **single({"qweight": ("I32", (H, 1)), "qzeros": ("I32", (1, 1)), "scales": ("F16", (1, I))}),
        },
    ),
    "compressed-tensors": Format(
        {"num_experts": E, "quantization_config": {"quant_method": "compressed-tensors"}},
        "mlp",
        lambda: {
            **GATE,
            **single(
                {
                    "weight_packed": ("I32", (I, 2)),
                    "weight_scale": ("BF16", (I, 1)),
                    "weight_shape": ("I64", (2,)),
                    "input_scale": ("F32", ()),
                }
            ),
        },
    ),
    "Granite": Format(
        {"num_local_experts": E},
        "block_sparse_moe",
        lambda: {
            "router.layer.weight": ("BF16", (E, H)),
            "input_linear.weight": ("BF16", (E, 2 * I, H)),
            "output_linear.weight": ("BF16", (E, H, I)),
        },
    ),
    "gpt-oss MXFP4": Format(
        {"num_local_experts": E, "quantization_config": {"quant_method": "mxfp4"}},
        "mlp",
        lambda: {
            "router.weight": ("BF16", (E, H)),
            "router.bias": ("BF16", (E,)),
            "experts.gate_up_proj_blocks": ("U8", (E, 2 * I, 1, 8)),
            "experts.gate_up_proj_scales": ("U8", (E, 2 * I, 1)),
            "experts.gate_up_proj_bias": ("BF16", (E, 2 * I)),
            "experts.down_proj_blocks": ("U8", (E, H, 1, 4)),
            "experts.down_proj_scales": ("U8", (E, H, 1)),
            "experts.down_proj_bias": ("BF16", (E, H)),
        },
    ),
    "Qwen3.5": Format(
        {"text_config": {"num_experts": E, "num_experts_per_tok": 2, "num_hidden_layers": 2}},
        "mlp",
        lambda: {
            **GATE,
            "experts.gate_up_proj": ("BF16", (E, 2 * I, H)),
            "experts.down_proj": ("BF16", (E, H, I)),
            "shared_expert.up_proj.weight": ("BF16", (I, H)),
            "shared_expert_gate.weight": ("BF16", (1, H)),
        },
        "model.language_model.layers.",
    ),
    "Llama-4 stacks": Format(
        {"text_config": {"num_local_experts": E, "num_experts_per_tok": 2, "num_hidden_layers": 2}},
        "feed_forward",
        lambda: {
            "router.weight": ("BF16", (E, H)),
            "experts.gate_up_proj": ("BF16", (E, H, 2 * I)),
            "experts.down_proj": ("BF16", (E, I, H)),
            "shared_expert.up_proj.weight": ("BF16", (I, H)),
        },
        "language_model.model.layers.",
    ),
    "Ernie 4.5": Format(
        {"moe_num_experts": E, "moe_k": 2},
        "mlp",
        lambda: {
            "gate.weight": ("F32", (E, H)),
            "moe_statics.e_score_correction_bias": ("F32", (1, E)),
            **single({"weight": ("BF16", (I, H))}),
        },
    ),
}
# Of every model: an embedding without a head of its own (tied), a norm, a scalar, an empty tensor.
OTHERS: Tensors = {
    "model.embed_tokens.weight": ("BF16", (32, H)),
    "model.norm.weight": ("BF16", (H,)),
    "model.scalar": ("F32", ()),
    "model.empty": ("I64", (0, 4)),
}


def data(name: str, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Random bytes that belong to a name."""
    seed = np.frombuffer(name.encode(), np.uint8).astype(np.uint32)
    tensor = torch.empty(shape, dtype=DTYPES[dtype])
    content = np.random.default_rng(seed).bytes(tensor.numel() * tensor.element_size())
    return torch.frombuffer(bytearray(content), dtype=DTYPES[dtype]).reshape(shape) if content else tensor


def write(folder: Path, config: dict[str, Any], tensors: Tensors, shards: int = 1) -> Path:
    """A checkpoint through the reference writer, in one file or several with an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    files = (
        ["model.safetensors"]
        if shards == 1
        else [f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
    )
    weight_map = {name: files[place * shards // len(names)] for place, name in enumerate(names)}
    for file in files:
        save_file(
            {n: data(n, *tensors[n]) for n in names if weight_map[n] == file},
            folder / file,
            {"format": "pt", "shard": file},
        )
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
        )
    return folder


def read(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor through the reference reader."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, entry in deserialize(file.read_bytes()):
            found[name] = (entry["dtype"], entry["shape"], bytes(entry["data"]))
    return found


def layers(style: Format) -> Tensors:
    return {
        f"{style.prefix}{layer}.{style.block}.{name}": kind
        for layer in (0, 1)
        for name, kind in style.tensors().items()
    }


def expected(
    source: dict[str, tuple[str, list[int], bytes]], kept: dict[int, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[str, list[int], bytes]]]:
    """What the pruned checkpoint has to hold, worked out from names and numpy."""
    for name, (dtype, shape, content) in source.items():
        layer = re.search(r"layers\.(\d+)\.", name)
        one = re.search(r"\.experts\.(\d+)\.", name)
        ids = kept[int(layer.group(1))] if layer else ()
        if one:
            if int(one.group(1)) in ids:
                yield (
                    name.replace(one.group(), f".experts.{ids.index(int(one.group(1)))}."),
                    (dtype, shape, content),
                )
        elif layer and "shared" not in name and E in shape[:2] and (shape[0] == E or shape[0] == 1):
            axis = shape.index(E)
            rows = np.frombuffer(content, np.uint8).reshape(E, -1)[list(ids)]
            yield name, (dtype, [*shape[:axis], len(ids), *shape[axis + 1 :]], rows.tobytes())
        else:
            yield name, (dtype, shape, content)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_format(name: str, shards: int, tmp_path: Path) -> None:
    style = FORMATS[name]
    config = {"architectures": ["SomeForCausalLM"], "tie_word_embeddings": True, **CONFIG, **style.config}
    write(tmp_path / "source", config, layers(style) | OTHERS, shards)
    layout = lay_out(open_checkpoint(tmp_path / "source"))
    assert (layout.shape.layers, layout.shape.num_experts, layout.shape.top_k) == ((0, 1), E, 2)
    even = (0, 1, 3, 4, 5, 7) if layout.shape.groups > 1 else KEPT
    source = read(tmp_path / "source")
    for kind, kept in (("equal", {0: even, 1: even}), ("unequal", {0: even, 1: (1, 2, 4, 6)})):
        out = tmp_path / kind
        export(layout, Plan(E, kept), out)
        assert read(out) == dict(expected(source, kept))
        after = json.loads((out / "config.json").read_text())
        if kind == "equal":
            text = after.get("text_config", after)
            key = next(
                key
                for key in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
                if key in text
            )
            assert text.pop(key) == 6
            before = json.loads(json.dumps(config))
            before.get("text_config", before).pop(key)
            assert after == before, "only the count changed"
        else:
            assert after.pop("excise_experts") == {"0": 6, "1": 4}
            assert after.pop("auto_map")["AutoModelForCausalLM"] == "modeling_excise.SomeForCausalLM"
            assert after == config
        if shards > 1:
            index = json.loads((out / "model.safetensors.index.json").read_text())
            assert index["weight_map"].keys() == read(out).keys()
            assert index["metadata"]["total_size"] == sum(
                len(content) for _, _, content in read(out).values()
            )
        assert {
            open_checkpoint(out).metadata[file]["shard"] for file in open_checkpoint(out).metadata
        } <= set(open_checkpoint(out).metadata)


def test_counts_under_two_keys_and_in_lists(tmp_path: Path) -> None:
    """Every key that counts the experts follows, in the form it has; a list has the same number for every
    layer.
    """
    style = FORMATS["Qwen3-MoE"]
    config = {
        "architectures": ["SomeForCausalLM"],
        **CONFIG,
        "num_experts": [E, E],
        "num_local_experts": E,
        "num_experts_per_tok": [2, 2],
    }
    write(tmp_path / "source", config, layers(style) | OTHERS)
    layout = lay_out(open_checkpoint(tmp_path / "source"))
    assert (layout.shape.num_experts, layout.shape.top_k) == (E, 2)
    export(layout, Plan(E, {0: KEPT, 1: KEPT}), tmp_path / "out")
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert after == {**config, "num_experts": [6, 6], "num_local_experts": 6}


def test_a_scale_for_all_experts_stays_whole(tmp_path: Path) -> None:
    """Beside fused experts, one number that belongs to all of them."""
    style = FORMATS["Qwen3.5"]
    name = f"{style.prefix}0.{style.block}.experts.gate_up_proj_input_scale"
    write(tmp_path / "source", {**CONFIG, **style.config}, layers(style) | OTHERS | {name: ("F32", ())})
    export(lay_out(open_checkpoint(tmp_path / "source")), Plan(E, {0: KEPT, 1: KEPT}), tmp_path / "out")
    assert read(tmp_path / "out")[name] == read(tmp_path / "source")[name]


# Unequal counts where a quantiser rebuilds the experts.


def test_unequal_counts_load_in_native_fp8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers puts FP8 experts of full size in the place of ours; they are resized too.

    Its check for a GPU is switched off.
    """
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", lambda *_, **__: None)
    sizes = {
        "hidden_size": 64,
        "moe_intermediate_size": 64,
        "num_experts": E,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
    }
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 32,
        "eos_token_id": 2,
    }
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("qwen3_moe", **sizes, **heads), dtype=torch.bfloat16
    )
    model.save_pretrained(tmp_path / "source")
    weights = load_file(tmp_path / "source" / "model.safetensors")
    for name in [name for name in weights if ".experts." in name]:
        weights[f"{name}_scale_inv"] = torch.rand(2, 2)
        weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    plain = ["lm_head", *(f"model.layers.{i}.{part}" for i in range(2) for part in ("mlp.gate", "self_attn"))]
    config["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [32, 32],
        "modules_to_not_convert": plain,
    }
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    kept = {0: KEPT, 1: (1, 2, 4, 6)}
    export(lay_out(open_checkpoint(tmp_path / "source")), Plan(E, kept), tmp_path / "out")
    source = AutoModelForCausalLM.from_pretrained(tmp_path / "source")
    pruned, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True, output_loading_info=True
    )
    assert not any(report.values())
    for layer, ids in kept.items():
        whole, cut = (dict(m.model.layers[layer].mlp.experts.named_parameters()) for m in (source, pruned))
        assert cut["gate_up_proj"].dtype == torch.float8_e4m3fn
        for name, tensor in whole.items():
            assert torch.equal(tensor.view(torch.uint8)[list(ids)], cut[name].view(torch.uint8)), name


# Multi-token prediction.


def test_all_parts_of_a_head_are_dropped(tmp_path: Path) -> None:
    """ERNIE 4.5 has norms and a projection of it in modules of their own."""
    style = FORMATS["Qwen3-MoE"]
    parts = ("mtp_block.0.mlp.up_proj", "mtp_emb_norm.0", "mtp_hidden_norm.0", "mtp_linear_proj.0")
    head: Tensors = {f"model.{part}.weight": ("BF16", (H,)) for part in parts}
    write(
        tmp_path / "source",
        {**CONFIG, **style.config, "num_nextn_predict_layers": 1},
        layers(style) | OTHERS | head,
    )
    export(lay_out(open_checkpoint(tmp_path / "source")), Plan(E, {0: KEPT, 1: KEPT}), tmp_path / "out")
    assert not [name for name in read(tmp_path / "out") if "mtp" in name]


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("num_nextn_predict_layers", "model.layers.2."),
        ("mtp_num_hidden_layers", "mtp.layers.0."),
        ("num_mtp_layers", "model.mtp.layers.0."),
        ("num_nextn_predict_layers", "model.mtp_block.0."),
    ],
)
def test_heads_for_more_tokens_are_dropped(key: str, prefix: str, tmp_path: Path) -> None:
    """Behind the last decoder layer, or in a module of their own."""
    style = FORMATS["Qwen3-MoE"]
    head = {f"{prefix}mlp.{name}": kind for name, kind in style.tensors().items()} | {
        f"{prefix}norm.weight": ("BF16", (H,))
    }
    config = {"architectures": ["SomeForCausalLM"], **CONFIG, **style.config, key: 1}
    write(tmp_path / "source", config, layers(style) | OTHERS | head)
    layout = lay_out(open_checkpoint(tmp_path / "source"))
    assert layout.shape.layers == (0, 1)
    done = export(layout, Plan(E, {0: KEPT, 1: KEPT}), tmp_path / "out")
    assert not [name for name in read(tmp_path / "out") if name.startswith(prefix)]
    assert json.loads((tmp_path / "out" / "config.json").read_text())[key] == 0
    assert any(
        f"{len(head)} tensors of multi-token-prediction layers were dropped" in note for note in done.notes
    )


def test_lists_of_unquantised_modules_follow_the_experts(tmp_path: Path) -> None:
    """Layer 0 keeps 0, 2, 3: expert 2 becomes 1, expert 1 goes; patterns and other names stay; layer 1 has
    numbers of its own.
    """
    style = FORMATS["compressed-tensors"]
    names = [
        "lm_head",
        "re:.*gate$",
        "model.layers.0.mlp.experts.1.up_proj",
        "model.layers.0.mlp.experts.2.up_proj",
        "model.layers.1.mlp.experts.7",
    ]
    config = {
        **CONFIG,
        **style.config,
        "quantization_config": {"quant_method": "compressed-tensors", "bits": 4, "ignore": names},
    }
    write(tmp_path / "source", config, layers(style) | OTHERS)
    layout = lay_out(open_checkpoint(tmp_path / "source"))
    export(layout, Plan(E, {0: (0, 2, 3), 1: (1, 5, 7)}), tmp_path / "out")
    after = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    kept = ["lm_head", "re:.*gate$", "model.layers.0.mlp.experts.1.up_proj", "model.layers.1.mlp.experts.2"]
    assert after == {"quant_method": "compressed-tensors", "bits": 4, "ignore": kept}


def test_other_quantisation_settings_follow_too(tmp_path: Path) -> None:
    """Keys (AutoRound), lists deeper down (compressed-tensors), and a file of its own (ModelOpt); patterns
    for all experts stay.
    """
    style = FORMATS["compressed-tensors"]
    name = "model.layers.0.mlp.experts.{}.up_proj".format
    settings = {
        "extra_config": {name(1): {"bits": 16}, name(3): {"bits": 8}, "lm_head": {"bits": 16}},
        "config_groups": {
            "group_0": {
                "targets": [
                    name(0),
                    name(2),
                    r"re:.*experts\.\d+\.down_proj",
                    r"re:.*experts\.[0-9]+\.up_proj",
                ]
            }
        },
    }
    write(
        tmp_path / "source",
        {**CONFIG, **style.config, "quantization_config": settings},
        layers(style) | OTHERS,
    )
    (tmp_path / "source" / "hf_quant_config.json").write_text(
        json.dumps({"quantization": {"exclude_modules": [name(2), name(1)]}})
    )
    export(
        lay_out(open_checkpoint(tmp_path / "source")), Plan(E, {0: (0, 2, 3), 1: (1, 5, 7)}), tmp_path / "out"
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"] == {
        "extra_config": {name(2): {"bits": 8}, "lm_head": {"bits": 16}},
        "config_groups": {
            "group_0": {
                "targets": [
                    name(0),
                    name(1),
                    r"re:.*experts\.\d+\.down_proj",
                    r"re:.*experts\.[0-9]+\.up_proj",
                ]
            }
        },
    }
    assert json.loads((tmp_path / "out" / "hf_quant_config.json").read_text()) == {
        "quantization": {"exclude_modules": [name(1)]}
    }


@pytest.mark.parametrize(
    "pattern",
    [
        r"re:.*experts\.3\..*",
        r"+:.*\.experts\.(1|2)\..*",
        "experts.3.up_proj",
        r"re:.*experts\.[0-3]\.up_proj",
    ],
)
def test_patterns_that_mean_single_experts_are_refused(pattern: str, tmp_path: Path) -> None:
    style = FORMATS["compressed-tensors"]
    config = {**CONFIG, **style.config, "quantization_config": {"ignore": [pattern]}}
    write(tmp_path / "source", config, layers(style) | OTHERS)
    with pytest.raises(ExciseError, match="means single experts, whose numbers change"):
        export(
            lay_out(open_checkpoint(tmp_path / "source")),
            Plan(E, {0: (0, 2, 3), 1: (1, 5, 7)}),
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


# Refusals.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"experts.scale": ("F32", (E + 1, 2))},
            "experts.scale has shape .*expected 8 experts on the first axis",
        ),
        ({"mystery": ("F32", (E, 3))}, "mystery has 8 rows and is not a known router tensor"),
        ({"gate.tid2eid": ("I64", (32, 2))}, "gate.tid2eid is a table of whole numbers"),
        ({"gate.weight": ("BF16", (E + 1, H))}, "gate.weight has shape .*expected 8 experts"),
        ({"gate.weight_scale_inv": ("F32", (2, 2))}, "gate.weight_scale_inv belongs to a quantised router"),
    ],
)
def test_what_could_only_be_cut_wrongly_is_refused(changes: Tensors, message: str, tmp_path: Path) -> None:
    style = FORMATS["Qwen3.5"]
    odd = {f"{style.prefix}0.{style.block}.{name}": kind for name, kind in changes.items()}
    write(tmp_path / "source", {**CONFIG, **style.config}, layers(style) | OTHERS | odd)
    with pytest.raises(ExciseError, match=message):
        lay_out(open_checkpoint(tmp_path / "source"))
