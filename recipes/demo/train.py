"""Train the demo model and its tokenizer on the standard library's own text (about an hour on 2 cores).

    python recipes/demo/train.py recipes/demo/model

writes held_out.json beside it, too: its loss and a unigram baseline.

An OLMoE of 6 layers × 16 experts, top-4. The text is split by file (criteria/text/standard_library.py): the
model never sees the calibration and test files. Needs `pip install -e '.[test]'` (transformers' Trainer needs
accelerate).
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from criteria.text.standard_library import Split, documents

END = "<|endoftext|>"
VOCABULARY = 4096
WINDOW = 512

# Written in the way OLMoE-1B-7B-0924 writes its own: what transformers 4 and other readers expect.
CONFIG = {
    "architectures": ["OlmoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "clip_qkv": None,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 192,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": WINDOW,
    "model_type": "olmoe",
    "norm_topk_prob": False,
    "num_attention_heads": 6,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 6,
    "output_router_logits": False,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "router_aux_loss_coef": 0.01,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}


def text_of(split: Split) -> list[str]:
    return [text for domain in ("code", "prose") for _, text in documents(domain, split)]


def train_tokenizer(texts: list[str], out: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE; saved under the class name that transformers 4 and 5 both know."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet)
    )
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "model_max_length": WINDOW,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (out / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": END, "pad_token": END}, indent=2) + "\n"
    )
    return PreTrainedTokenizerFast.from_pretrained(out)


def stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """All texts, each closed by the end token, as one array of token ids."""
    return np.concatenate([np.array([*ids, 0]) for ids in tokenizer(texts)["input_ids"]])


def windows(tokens: np.ndarray, offset: int = 0) -> torch.Tensor:
    count = (len(tokens) - offset) // WINDOW
    return torch.from_numpy(tokens[offset : offset + count * WINDOW].reshape(count, WINDOW).copy())


@torch.no_grad()
def held_out_loss(model: OlmoeForCausalLM, test: torch.Tensor) -> float:
    """Mean cross-entropy per predicted token, in nats."""
    model.eval()
    return float(np.mean([float(model(input_ids=batch, labels=batch).loss) for batch in test.split(1)]))


def unigram_loss(train: np.ndarray, test: np.ndarray) -> float:
    """Cross-entropy of the test tokens under the training frequencies, add-one smoothed, in nats."""
    counts = np.bincount(train, minlength=VOCABULARY) + 1.0
    return float(-np.log(counts / counts.sum())[test].mean())


def fit(train: np.ndarray, steps: int, seed: int, scratch: Path) -> OlmoeForCausalLM:
    set_seed(seed)
    model = OlmoeForCausalLM(
        OlmoeConfig(**{**CONFIG, "output_router_logits": True, "torch_dtype": "float32"})
    )
    # Eight shifts of the window grid: later passes over the text cut it at other places.
    data = [
        {"input_ids": row, "labels": row} for shift in range(8) for row in windows(train, shift * WINDOW // 8)
    ]
    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=2e-3,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": 1e-4},
        warmup_steps=100,
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        logging_steps=20,
        save_steps=200,
        save_total_limit=1,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
    )
    checkpoints = sorted(scratch.glob("checkpoint-*"))
    Trainer(model=model, args=arguments, train_dataset=data).train(
        resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None
    )
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path("demo-training"),
        help="Trainer checkpoints; a second run resumes there",
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    texts = text_of("train")
    tokenizer = train_tokenizer(texts, options.out)
    train, test = stream(tokenizer, texts), stream(tokenizer, text_of("test"))
    model = fit(train, options.steps, options.seed, options.scratch)
    model.to(torch.bfloat16).save_pretrained(options.out)
    # transformers 5 rewrites keys that transformers 4 reads: its weights stay, the config is written here.
    (options.out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    weights = options.out / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})

    report = {
        "held_out_loss": round(held_out_loss(model, windows(test)), 4),
        "unigram_loss": round(unigram_loss(train, test), 4),
        "uniform_loss": round(math.log(VOCABULARY), 4),
        "train_tokens": len(train),
        "test_tokens": len(test),
        "steps": options.steps,
        "seed": options.seed,
    }
    (options.out.parent / "held_out.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
