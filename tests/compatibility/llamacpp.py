"""Does llama.cpp read what Excise writes? Run by hand: it needs an environment of its own.

llama-cpp-python's source package carries llama.cpp and its converter; building it takes some ten minutes
on one core:

    python -m venv /tmp/vgguf
    /tmp/vgguf/bin/pip download -d /tmp --no-deps --no-binary :all: llama-cpp-python==0.3.36
    tar xf /tmp/llama_cpp_python-0.3.36.tar.gz -C /tmp
    export CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"
    export CMAKE_ARGS="$CMAKE_ARGS -DLLAMA_CURL=OFF -DGGML_NATIVE=OFF"
    /tmp/vgguf/bin/pip install /tmp/llama_cpp_python-0.3.36
    /tmp/vgguf/bin/pip install torch==2.13.0 transformers==4.57.6 'sentencepiece<0.3' 'protobuf<5'
    /tmp/vgguf/bin/pip install 'numpy~=2.2.6' pyyaml requests tqdm
    python -m tests.compatibility.llamacpp /tmp/vgguf/bin/python /tmp/llama_cpp_python-0.3.36/vendor/llama.cpp

Where building takes too long, `pip install xllamacpp==2026.10.11549` instead of /tmp/llama_cpp_python-0.3.36
brings a later llama.cpp ready-made. It is asked as a server, a token at a time; the converter is the same.

transformers 4 makes small random checkpoints (beside them, the demo model); Excise, on transformers 5,
restricts and exports them, and refits the pruned demo; the converter turns the originals and the exports
into float32 GGUF files; llama.cpp reads those, and its next-token probabilities are compared with those of
the original, of the restricted and of the refitted model. What an original differs by is llama.cpp's own
difference.

The converter knows a tokenizer by a hash of what it makes of one text, and refuses all others, the demo's
among them. Here it is told "gpt-2": the name of the demo's way to split text before its BPE. Nothing else
is touched, and llama.cpp's tokens of the text are compared too. The random checkpoints get the demo's
tokenizer, so that vocabulary and tokenizer fit; GLM's special tokens, which the demo's tokenizer does not
have, are not asked for.
"""

import json
import runpy
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "recipes" / "demo" / "model"
LENGTH = 256  # tokens of the text; context and batch of llama.cpp
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 0,
    "num_experts_per_tok": 2,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
}
GROUPED = {
    "n_routed_experts": 8,
    "moe_intermediate_size": 24,
    "intermediate_size": 40,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
}
# llama.cpp takes norm_topk_prob of Qwen3-MoE for true and needs scoring_func of DeepSeek-V3: both as in the
# published checkpoints. It always rounds the range of YaRN to whole dimensions, which gpt-oss does not want
# (truncate); in 8 dimensions that is felt.
FAMILIES = {
    "mixtral": {"num_local_experts": 8, "intermediate_size": 24},
    "qwen2_moe": {"num_experts": 8, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 20},
    "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 24, "head_dim": 8, "norm_topk_prob": True},
    "deepseek_v2": {**GROUPED, **LATENT, "n_group": 1, "topk_group": 1},
    "deepseek_v3": {**GROUPED, **LATENT, "n_group": 2, "topk_group": 1, "scoring_func": "sigmoid"},
    "glm4_moe": {**GROUPED, "n_group": 1, "topk_group": 1, "head_dim": 8},
    "gpt_oss": {
        "num_local_experts": 8,
        "intermediate_size": 32,
        "head_dim": 8,
        "sliding_window": 128,
        "rope_scaling": {**YARN, "truncate": True},
    },
}
PLANS = {
    "uniform": lambda expert, layer: expert % 2 == layer % 2,  # half, other ones in every layer
    "unequal": lambda expert, layer: expert % (2 if layer % 2 else 4) > 0,  # a half or three quarters
}


def make(folder: Path) -> None:
    """In transformers 4: random checkpoints with the demo's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for family, sizes in FAMILIES.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **sizes}))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.3)
        model.save_pretrained(folder / family / "original")
        for path in [*DEMO.glob("tokenizer*"), DEMO / "special_tokens_map.json"]:
            shutil.copy(path, folder / family / "original")


def prune(folder: Path) -> None:
    """In transformers 5, with Excise: restrict, keep the log-probabilities, export."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    from experts.ablation import restricted
    from experts.anatomy import dissect
    from experts.disk.layout import lay_out
    from experts.disk.shards import open_checkpoint
    from experts.plan import Plan
    from prune.checkpoint.write import export

    text = (ROOT / "LICENSE").read_text()
    tokens = torch.tensor([Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(text).ids[:LENGTH]])
    shutil.copytree(DEMO, folder / "demo" / "original")
    for source in sorted(folder.glob("*/original")):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        anatomy, layout = dissect(model), lay_out(open_checkpoint(source))
        found = {"tokens": tokens[0]}
        with torch.no_grad():
            found["original"] = model(input_ids=tokens).logits[0].double().log_softmax(-1)
        for name, keeps in PLANS.items():
            plan = Plan(
                layout.shape.num_experts,
                {
                    layer: tuple(e for e in range(layout.shape.num_experts) if keeps(e, layer))
                    for layer in layout.shape.layers
                },
            )
            export(layout, plan, source.parent / name)
            with torch.no_grad(), restricted(anatomy, plan):
                found[name] = model(input_ids=tokens).logits[0].double().log_softmax(-1)
        if source.parent.name == "demo":
            found |= refitted(source.parent, tokens)
        torch.save(found, source.parent / "expected.pt")


def refitted(demo: Path, tokens: Any) -> dict[str, Any]:
    """The demo with equal counts, refitted and exported.

    Returns:
        Its log-probabilities [W, V], and what they are without the refit.
    """
    from tests.compatibility.refitted import write_refitted

    kept = {layer: tuple(e for e in range(16) if PLANS["uniform"](e, layer)) for layer in range(6)}
    logits = write_refitted(kept, tokens, demo / "refitted")
    found = {"refitted": logits["refitted"], "without refit": logits["plain"]}
    return {name: values[0].double().log_softmax(-1) for name, values in found.items()}


def compare(folder: Path, converter: Path) -> None:
    """In the environment of llama-cpp-python: a process for every checkpoint, which it may bring down."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*/*/config.json")):
        command = [sys.executable, str(Path(__file__).resolve()), "read", str(path.parent), str(converter)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        result = (
            json.loads(done.stdout.splitlines()[-1])
            if done.returncode == 0
            else {"refused": reason(done.stderr)}
        )
        found.setdefault(path.parents[1].name, {})[path.parent.name] = result
        print(path.parents[1].name, path.parent.name, result, file=sys.stderr, flush=True)
    print(json.dumps(found, indent=2))


def reason(stderr: str) -> str:
    """What llama.cpp says of a file that it does not load; else the last line, which is the converter's."""
    lines = stderr.strip().splitlines() or ["no message"]
    return next((line for line in lines if "error loading model" in line), lines[-1])[:200]


def read(checkpoint: Path, converter: Path) -> None:
    """Convert, look into the GGUF file, load it, and print how far its probabilities are off."""
    import torch

    path = checkpoint.with_suffix(".gguf")
    convert(checkpoint, converter, path)
    saved = torch.load(checkpoint.parent / "expected.pt")
    tokens, expected = saved["tokens"].tolist(), saved[checkpoint.name]
    logs, again = (by_library if find_spec("llama_cpp") else by_server)(path, tokens)
    assert logs.shape == expected.shape, (logs.shape, expected.shape)
    found: dict[str, Any] = {
        **described(path),
        "same_tokens": None if again is None else again[: len(tokens)] == tokens,
        **distance(logs, expected),
        "pruning_itself": distance(saved["original"], expected)["probability"],
    }
    if checkpoint.name == "refitted":
        found["refit_itself"] = distance(saved["without refit"], expected)["probability"]
    print(json.dumps(found))


def by_library(path: Path, tokens: list[int]) -> tuple[Any, list[int]]:
    """Log-probabilities [W, V] of a GGUF file, and what its tokenizer makes of the text."""
    import llama_cpp
    import torch

    # The cache of keys and values is float16 unless told otherwise.
    exact = {
        "type_k": llama_cpp.GGML_TYPE_F32,
        "type_v": llama_cpp.GGML_TYPE_F32,
        "n_threads": 1,
        "n_threads_batch": 1,
    }
    model = llama_cpp.Llama(str(path), n_ctx=LENGTH, n_batch=LENGTH, logits_all=True, verbose=True, **exact)
    model.eval(tokens)
    logits = torch.from_numpy(model.scores[: len(tokens)].copy())
    again = model.tokenize((ROOT / "LICENSE").read_bytes(), add_bos=False)
    return logits.double().log_softmax(-1), again


def by_server(path: Path, tokens: list[int]) -> tuple[Any, None]:
    """The same by xllamacpp, whose server gives the probabilities of one token: every prefix is asked.

    It does not say what its tokenizer makes of a text.
    """
    import torch
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.warmup = 2 * LENGTH, 1, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(settings)
    size = int(json.loads((path.with_suffix("") / "config.json").read_text())["vocab_size"])
    asked = {
        "n_predict": 1,
        "n_probs": size,
        "post_sampling_probs": False,
        "cache_prompt": True,
        "samplers": [],
    }
    logs = torch.full((len(tokens), size), float("nan"), dtype=torch.float64)
    for place in range(len(tokens)):
        answer = server.handle_completions({**asked, "prompt": tokens[: place + 1], "id_slot": 0})
        [content] = answer["choices"][0]["logprobs"]["content"]
        for found in content["top_logprobs"]:
            logs[place, found["id"]] = found["logprob"]
    return logs, None


def convert(checkpoint: Path, converter: Path, out: Path) -> None:
    """The converter as it is, but for how it knows a tokenizer."""
    sys.path.insert(0, str(converter))
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
    TextModel._set_vocab_glm = (
        TextModel._set_vocab_gpt2
    )  # else it looks for special tokens that only GLM's tokenizer has
    sys.argv = ["convert_hf_to_gguf.py", str(checkpoint), "--outfile", str(out), "--outtype", "f32"]
    runpy.run_path(str(converter / "convert_hf_to_gguf.py"), run_name="__main__")


def described(path: Path) -> dict[str, Any]:
    """What the GGUF file says of its experts, and how many its tensors hold."""
    import gguf

    reader = gguf.GGUFReader(path)
    name = reader.get_field("general.architecture").contents()
    count, used = (
        reader.get_field(f"{name}.{key}").contents() for key in ("expert_count", "expert_used_count")
    )
    stored = sorted({int(tensor.shape[-1]) for tensor in reader.tensors if "_exps.weight" in tensor.name})
    return {
        "architecture": name,
        "expert_count": count,
        "expert_used_count": used,
        "experts_in_tensors": stored,
    }


def distance(found: Any, expected: Any) -> dict[str, Any]:
    """Differences of log-probabilities [positions, vocabulary], and how often the likeliest token agrees."""
    return {
        "log_probability": float((found - expected).abs().max()),
        "probability": float((found.exp() - expected.exp()).abs().max()),
        "same_top_1": f"{int((found.argmax(-1) == expected.argmax(-1)).sum())} of {len(expected)}",
    }


def main() -> None:
    if sys.argv[1] in ("make", "compare", "read"):
        {"make": make, "compare": compare, "read": read}[sys.argv[1]](*map(Path, sys.argv[2:]))
        return
    python, converter = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        script = str(Path(__file__).resolve())
        subprocess.run([python, script, "make", name], check=True)
        prune(Path(name))
        subprocess.run([python, script, "compare", name, converter], check=True)


if __name__ == "__main__":
    main()
