"""Does transformers 4 read what Excise writes? Run by hand: it needs an environment of its own.

    python -m venv /tmp/v4 && /tmp/v4/bin/pip install torch==2.13.0 transformers==4.57.6
    python -m tests.compatibility.transformers4 /tmp/v4/bin/python

transformers 4 makes small random checkpoints in its own format (and takes the demo model); Excise, on
transformers 5, restricts and exports them, merges random adapters into the pruned model ("recovered"), and
refits the pruned demo ("refitted"); transformers 4 loads the exports and compares logits, in float32, with
those of the restricted, merged or refitted model, and the merged weights bit by bit. How far a refit moves
the logits is printed beside it.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 1,
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
FAMILIES = {
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 24},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 24},
    "qwen2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 20,
    },
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
    "deepseek_v2": {**GROUPED, **LATENT, "num_experts_per_tok": 2},
    "deepseek_v3": {**GROUPED, **LATENT, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1},
    "glm4_moe": {**GROUPED, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "head_dim": 8},
}
KEPT = {"uniform": ((0, 2, 3, 5, 6, 7),), "unequal": ((0, 2, 3, 5, 6, 7), (1, 2, 4, 6))}
TOKENS = [[5, 17, 200, 33, 8, 250, 91, 4, 77, 130, 2, 61]]


def make(folder: Path) -> None:
    """In transformers 4: random checkpoints."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for family, sizes in FAMILIES.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **sizes}))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.3)
        model.save_pretrained(folder / family)


def prune(folder: Path, demo: Path) -> None:
    """In transformers 5, with Excise: restrict, keep the logits, export."""
    import torch
    from transformers import AutoModelForCausalLM

    from experts.ablation import restricted
    from experts.anatomy import dissect
    from experts.disk.layout import lay_out
    from experts.disk.shards import open_checkpoint
    from experts.plan import Plan
    from prune.checkpoint.write import export

    for source in [*(folder / family for family in FAMILIES), demo]:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        anatomy, layout = dissect(model), lay_out(open_checkpoint(source))
        for kind, choices in KEPT.items():
            wanted = {layer: choices[i % len(choices)] for i, layer in enumerate(layout.shape.layers)}
            plan = Plan(layout.shape.num_experts, wanted)
            out = folder / f"{'demo' if source == demo else source.name}-{kind}"
            export(layout, plan, out)
            with torch.no_grad(), restricted(anatomy, plan):
                torch.save(model(input_ids=torch.tensor(TOKENS)).logits, out / "expected.pt")
        recover(
            anatomy,
            layout,
            Plan(layout.shape.num_experts, dict.fromkeys(layout.shape.layers, KEPT["uniform"][0])),
            out.with_name(f"{out.name.rpartition('-')[0]}-recovered"),
        )
    refit(folder)


def refit(folder: Path) -> None:
    """The demo with equal and with unequal counts, refitted and exported, with the logits to be read back."""
    import torch

    from tests.compatibility.refitted import write_refitted

    for kind, choices in KEPT.items():
        kept = {layer: choices[layer % len(choices)] for layer in range(6)}
        out = folder / f"demo-refitted-{kind}"
        logits = write_refitted(kept, torch.tensor(TOKENS), out)
        torch.save(logits["refitted"], out / "expected.pt")
        torch.save(logits["plain"], out / "plain.pt")


def recover(anatomy, layout, plan, out: Path) -> None:  # type: ignore[no-untyped-def]
    """Random adapters on everything, merged and exported, with the logits and weights to be read back."""
    import torch

    from experts.sharing import sharing
    from finetune.adapters import adapt, merged
    from finetune.settings import GROUPS, Training
    from finetune.targets import find_targets
    from prune.checkpoint.slices import by_name, slice_layout
    from prune.checkpoint.stored_weights import StoredWeights
    from prune.checkpoint.write import TrainedWeights, export

    with sharing(anatomy, plan):
        adapted = adapt(anatomy.model, find_targets(anatomy, GROUPS), Training(), 0)
        with torch.no_grad():
            for name, parameter in adapted.peft.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
        storage = StoredWeights(anatomy.model, by_name(slice_layout(layout, plan)))
        with merged(adapted, storage.rounded) as weights, torch.no_grad():
            changed = storage.write(weights, out.with_name(f"{out.name}-weights"))
            export(layout, plan, out, recovered=TrainedWeights(changed, {}))
            torch.save(anatomy.model(input_ids=torch.tensor(TOKENS)).logits, out / "expected.pt")
            parts = {
                part: tensor.clone()
                for name, weight in weights.items()
                for part, tensor in storage.parts(name, weight).items()
            }
            torch.save(parts, out / "weights.pt")


def compare(folder: Path) -> None:
    """In transformers 4: load every export, print its logits' largest difference to the restricted one."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    found = {"transformers": transformers.__version__}
    for path in sorted(folder.glob("*/expected.pt")):
        trusted = (path.parent / "modeling_excise.py").exists()
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, dtype=torch.float32, trust_remote_code=trusted
        ).eval()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(TOKENS)).logits
        expected = torch.load(path)
        found[path.parent.name] = float((logits - expected).abs().max())
        if (path.parent / "plain.pt").exists():
            plain = torch.load(path.parent / "plain.pt")
            found[f"{path.parent.name}, the refit itself"] = float((plain - expected).abs().max())
        if (path.parent / "weights.pt").exists():
            state = model.state_dict()
            equal = all(
                torch.equal(state[name], tensor)
                for name, tensor in torch.load(path.parent / "weights.pt").items()
            )
            found[f"{path.parent.name}, merged weights bit-equal"] = equal
    print(json.dumps(found, indent=2))


def main() -> None:
    if sys.argv[1] in ("make", "compare"):
        {"make": make, "compare": compare}[sys.argv[1]](Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as name:
        script = str(Path(__file__).resolve())
        subprocess.run([sys.argv[1], script, "make", name], check=True)
        prune(Path(name), Path(__file__).resolve().parents[2] / "recipes" / "demo" / "model")
        subprocess.run([sys.argv[1], script, "compare", name], check=True)


if __name__ == "__main__":
    main()
