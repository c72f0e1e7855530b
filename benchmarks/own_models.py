"""Train two small MoE language models of other shapes and text than the demo, to judge what was tuned on it.

    python -m benchmarks.own_models A --out models/A [--data shared/data --steps 1200 --seed 0]
    python -m benchmarks.own_models B --out models/B

A is an OLMoE of 6 layers × 16 experts, B a Qwen2-MoE of 6 × 24 with a shared expert, both top-4 without
renormalised weights. Three domains in equal parts: wiki (WikiText-2), maths (GSM8K, question and answer),
code (the standard library's source without docstrings). Training text, calibration text and test text of a
domain share no document; the last two are written to OUT/text/DOMAIN.SPLIT.jsonl, ready for a recipe. A
second run goes on from the last save, with the same result.
"""

import argparse
import json
import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from benchmarks.refit_texts import default_data
from criteria.text.standard_library import documents
from experts.arrays import Array

END = "<|endoftext|>"
DOMAINS = ("wiki", "maths", "code")
SPLITS = ("train", "calibration", "test")
COMMON: dict[str, Any] = {
    "hidden_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "num_experts_per_tok": 4,
    "norm_topk_prob": False,
    "max_position_embeddings": 512,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "initializer_range": 0.05,
    "router_aux_loss_coef": 0.01,
    "output_router_logits": True,
}
A = {"num_experts": 16, "intermediate_size": 96}
B = {"num_experts": 24, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 128}


def texts_of(domain: str, split: str, data: Path) -> list[str]:
    """Documents of a domain. Of wiki and maths the calibration text is a tenth of what is not the test."""
    if domain == "code":
        return [text for _, text in documents("code", split)]  # type: ignore[arg-type]
    read = _wiki if domain == "wiki" else _maths
    if split == "test":
        return read(data, "test")
    return [text for n, text in enumerate(read(data, "rest")) if (n % 10 == 9) == (split == "calibration")]


def _wiki(data: Path, part: str) -> list[str]:
    text = (data / "wikitext-2" / ("test.txt" if part == "test" else "valid.txt")).read_text()
    return [one.strip() for one in re.split(r"^(?= = [^=].* = $)", text, flags=re.MULTILINE) if one.strip()]


def _maths(data: Path, part: str) -> list[str]:
    name = "test.jsonl" if part == "test" else "train-head.jsonl"
    rows = [json.loads(line) for line in (data / "gsm8k" / name).read_text().splitlines()]
    return [f"{row['question']}\n{row['answer']}" for row in rows]


def tokenizer_of(texts: list[str], vocabulary: int, out: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE, saved in the folder."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(texts, trainer)
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=found, eos_token=END, pad_token=END
    )
    tokenizer.save_pretrained(out)
    return tokenizer


def stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Array:
    """All texts, each closed by the end token, as one array of ids."""
    return np.concatenate([np.array([*ids, 0]) for ids in tokenizer(texts)["input_ids"]])


def network_of(name: str, vocabulary: int, seed: int, **changes: Any) -> PreTrainedModel:
    """The untrained model."""
    torch.manual_seed(seed)
    common = {**COMMON, "vocab_size": vocabulary}
    if name == "A":
        return OlmoeForCausalLM(OlmoeConfig(**{**common, **A, **changes}))
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**{**common, **B, **changes}))


def batches(streams: list[Array], options: Namespace, begin: int) -> Iterator[tuple[int, torch.Tensor]]:
    """(step, tokens): the domains take turns; a step depends on its number only."""
    for step in range(begin, options.steps):
        rng = np.random.default_rng((options.seed, step))
        rows = []
        for row in range(options.batch):
            text = streams[(step + row) % len(streams)]
            first = int(rng.integers(len(text) - options.length))
            rows.append(text[first : first + options.length])
        yield step, torch.from_numpy(np.stack(rows))


def train(network: PreTrainedModel, streams: list[Array], options: Namespace) -> None:
    """AdamW, 5 % warm-up, cosine down to a twentieth."""
    adam = torch.optim.AdamW(network.parameters(), lr=options.rate, betas=(0.9, 0.95), weight_decay=0.1)
    saved, begin, losses = options.out / "training.pt", 0, []
    if saved.exists():
        state = torch.load(saved)
        begin = state["step"]
        network.load_state_dict(state["network"])
        adam.load_state_dict(state["adam"])
    warm = max(1, options.steps // 20)
    network.train()
    for step, tokens in batches(streams, options, begin):
        falling = 0.5 * (1 + np.cos(np.pi * max(0, step - warm) / (options.steps - warm)))
        rate = options.rate * min((step + 1) / warm, 0.05 + 0.95 * falling)
        adam.param_groups[0]["lr"] = float(rate)
        loss = network(input_ids=tokens, labels=tokens).loss
        loss.backward()  # with the load-balancing loss
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        losses.append(float(loss.detach()))
        if (step + 1) % 20 == 0:
            print(json.dumps({"step": step + 1, "loss": round(float(np.mean(losses[-20:])), 4)}), flush=True)
        if (step + 1) % options.save == 0:
            state = {"step": step + 1, "network": network.state_dict(), "adam": adam.state_dict()}
            torch.save(state, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)


@torch.no_grad()
def loss_on(network: PreTrainedModel, tokens: Array, length: int, count: int = 32) -> float:
    """Mean cross-entropy in nats per token, without the load-balancing loss."""
    rows = torch.from_numpy(tokens[: len(tokens) // length * length].reshape(-1, length)[:count].copy())
    logits = network(input_ids=rows, output_router_logits=False).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()))


def write_texts(options: Namespace) -> None:
    """The calibration and test text of every domain, as rows."""
    folder = options.out / "text"
    folder.mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        for split in SPLITS[1:]:
            rows = [json.dumps({"text": text}) for text in texts_of(domain, split, options.data)]
            (folder / f"{domain}.{split}.jsonl").write_text("\n".join(rows) + "\n")


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("name", choices=["A", "B"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=default_data())
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--save", type=int, default=100, help="steps between two saves")
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_texts(options)
    texts = {domain: texts_of(domain, "train", options.data) for domain in DOMAINS}
    shortest = min(sum(map(len, found)) for found in texts.values())
    learned = [text for found in texts.values() for text in _first(found, shortest)]
    tokenizer = tokenizer_of(learned, options.vocabulary, options.out)
    network = network_of(options.name, len(tokenizer), options.seed)
    train(network, [stream(tokenizer, found) for found in texts.values()], options)
    network.config.output_router_logits = False
    network.train(False).save_pretrained(options.out)
    for domain in DOMAINS:
        test = stream(tokenizer, texts_of(domain, "test", options.data))
        loss = loss_on(network, test, options.length)
        print(json.dumps({"model": options.name, "domain": domain, "held_out_loss": round(loss, 4)}))


def _first(texts: list[str], characters: int) -> Iterator[str]:
    """Documents up to a number of characters."""
    for text in texts:
        if characters <= 0:
            return
        characters -= len(text)
        yield text


if __name__ == "__main__":
    main()
