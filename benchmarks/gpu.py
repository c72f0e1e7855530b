"""What a GPU has to show, in one script of at most six minutes that prints JSON. A CPU runs it with --tiny.

    python -m benchmarks.gpu [--tiny] [--device cuda] [--layers 4]

A random OLMoE with 64 experts and hidden size 2,048 is made on the device. Sections: restricted = cut =
reloaded, bit by bit, in float32 and bfloat16; calibration against a plain forward; position effects against
one forward each; the sweep against whole forwards, resident and streamed; a step of recovery; the refit of
half the experts, all at once and expert by expert; peak memory. A section that fails leaves its error, and
the others run.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

from criteria.observe import observe
from criteria.text.windows import Windows
from experts.ablation import restricted
from experts.anatomy import Anatomy
from experts.disk.layout import lay_out
from experts.disk.shards import open_checkpoint
from experts.effects.instrument import Instrument
from experts.memory_settings import MemorySettings
from experts.model import Model
from experts.modes import Mode, Scope
from experts.plan import Plan
from experts.surgery import cut
from finetune.recover_model import recover
from finetune.refit import layers
from finetune.refit_model import refit_experts
from prune.checkpoint.write import export
from tests.support.removals import at_positions, clean_forward, replay_position
from validate.draw import random_plans
from validate.loss import window_losses
from validate.plan_losses import plan_losses

TINY = {"hidden": 32, "inner": 16, "experts": 8, "top_k": 2, "layers": 2, "vocabulary": 64, "length": 16}
FULL = {
    "hidden": 2048,
    "inner": 1024,
    "experts": 64,
    "top_k": 8,
    "layers": 6,
    "vocabulary": 32_000,
    "length": 512,
}
REFITS = {"at_once": 1.0, "by_expert": 0.0}  # share of the free memory that the equations of a layer may take


def main() -> None:
    """Run all sections and print their results."""
    options = arguments()
    results: dict[str, Any] = {"card": name_of(options.device), "torch": torch.__version__, **vars(options)}
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory(prefix="excise-gpu-") as folder:
            make(Path(folder) / "model", options, dtype)
            results[dtype] = sections(Path(folder), options, full=dtype == "bfloat16")
    print(json.dumps(results, indent=2))


def arguments() -> argparse.Namespace:
    """Sizes; --tiny for a CPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--layers", type=int)
    options = parser.parse_args()
    sizes = TINY if options.tiny else FULL
    given = {key: value for key, value in vars(options).items() if value is not None}
    return argparse.Namespace(**{**sizes, **given})


def name_of(device: str) -> str:
    """The card's name."""
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


def make(folder: Path, options: argparse.Namespace, dtype: str) -> None:
    """Write the model, made on the device."""
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.inner,
        num_hidden_layers=options.layers,
        num_attention_heads=max(2, options.hidden // 128),
        num_key_value_heads=max(2, options.hidden // 128),
        num_experts=options.experts,
        num_experts_per_tok=options.top_k,
        pad_token_id=None,
        eos_token_id=0,
    )
    with torch.device(options.device):
        model = OlmoeForCausalLM._from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)


def sections(folder: Path, options: argparse.Namespace, *, full: bool) -> dict[str, Any]:
    """Everything in one precision; the speeds in one of them."""
    model = opened(folder / "model", options, "resident")
    text = windows(options, seed=1)
    plan = half(model)
    found = {"bit_equal": section(lambda: bit_equal(model, plan, text, folder / "pruned", options))}
    found["sweep"] = section(lambda: swept(model, text, folder / "model", options))
    if full:
        found["calibration"] = section(lambda: calibration(model.anatomy, text))
        found["effects"] = section(lambda: effects(model.anatomy, text))
        found["recovery"] = section(lambda: recovery(model, plan, text, windows(options, seed=2)))
        for way, share in REFITS.items():
            found[f"refit_{way}"] = section(partial(refit, model, plan, options, share))
    return found


def section(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One section, with its seconds and its peak memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    try:
        found = work()
    except Exception as error:  # noqa: BLE001 - the other sections are worth having
        found = {"error": f"{type(error).__name__}: {error}"[:400]}
    found["seconds"] = round(time.perf_counter() - began, 2)
    if torch.cuda.is_available():
        found["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return found


def bit_equal(
    model: Model, plan: Plan, text: Windows, pruned: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Logits of the restricted model, of the cut one, and of the written and reloaded one."""
    tokens = text.tensor(model.device)[:2]
    with restricted(model.anatomy, plan):
        expected = logits(model.anatomy, tokens)
    export(model.layout, plan, pruned, "", force=True, fingerprint=model.fingerprint)
    reloaded = logits(opened(pruned, options, "resident").anatomy, tokens)
    other = opened(model.folder, options, "resident")
    cut_down = cut(other.anatomy, plan)
    assert cut_down is not None, "equal counts"
    return {
        "restricted_is_cut": torch.equal(expected, logits(cut_down, tokens)),
        "restricted_is_reloaded": torch.equal(expected, reloaded),
    }


def swept(model: Model, text: Windows, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Losses of eight plans: whole forwards, and sweeps with all weights in memory and layer by layer."""
    nothing = np.zeros((model.shape.num_layers, model.shape.num_experts), dtype=bool)
    plans = random_plans(half(model), model.shape, nothing, 8, seed=0)
    streamed = opened(folder, options, "streamed")
    whole_seconds, whole = clock(lambda: whole_forwards(model.anatomy, text, plans))
    resident_seconds, resident = clock(lambda: plan_losses(model.anatomy, text, plans))
    streamed_seconds, from_disk = clock(lambda: plan_losses(streamed.anatomy, text, plans))
    return {
        "resident_bit_equal": bool(np.array_equal(whole, resident)),
        "streamed_bit_equal": bool(np.array_equal(whole, from_disk)),
        "resident_to_whole": round(resident_seconds / whole_seconds, 3),
        "streamed_to_whole": round(streamed_seconds / whole_seconds, 3),
        "largest_difference": float(max(np.abs(whole - resident).max(), np.abs(whole - from_disk).max())),
    }


def calibration(anatomy: Anatomy, text: Windows) -> dict[str, Any]:
    """All observed statistics against a plain forward without head."""
    tokens = text.tensor(anatomy.device)

    def plain() -> None:
        with torch.no_grad():
            anatomy.model.base_model(input_ids=tokens, use_cache=False)

    def ratio() -> float:
        return clock(lambda: observe(anatomy, text, batch=len(text)))[0] / clock(plain)[0]

    ratio()  # the first pass pays for what is made once
    return {"to_plain": round(float(np.median([ratio() for _ in range(3)])), 3)}


def effects(anatomy: Anatomy, text: Windows) -> dict[str, Any]:
    """Every active expert of a window at every position of a layer, against one forward each (a sample)."""
    tokens = text.tensor(anatomy.device)[:1]
    instrument = Instrument(anatomy, Mode.ZERO, probabilities=False)
    instrument.check(tokens, Scope.POSITION)
    clean = clean_forward(instrument, tokens, Scope.POSITION)
    row = len(anatomy.layers) // 2
    index = clean.index[row][0, :-1]
    where = torch.arange(len(index), device=index.device).repeat_interleave(index.shape[1])
    marks = torch.nn.functional.one_hot(index.reshape(-1), anatomy.shape.num_experts).bool()
    packed_seconds, (deltas, _) = clock(lambda: at_positions(instrument, clean, where, {row: marks}))
    sample = range(0, len(where), max(1, len(where) // 8))

    def one_by_one() -> list[float]:
        found = []
        for place in sample:
            loss, _ = replay_position(instrument, clean, int(where[place]), {row: marks[place]})
            found.append(float(loss - clean.losses[0, where[place]]))
        return found

    plain_seconds, replayed = clock(one_by_one)
    return {
        "removals": len(where),
        "times_faster": round(plain_seconds / len(replayed) / (packed_seconds / len(where)), 1),
        "largest_difference": max(abs(a - float(deltas[b])) for a, b in zip(replayed, sample, strict=True)),
        "fell_back": instrument.notes,
    }


def recovery(model: Model, plan: Plan, text: Windows, held_out: Windows) -> dict[str, Any]:
    """A step of LoRA with its teacher; the first one is not counted."""
    with recover(model, plan, text, held_out=held_out, rank=4, steps=6, batch=2) as recovered:
        curve = recovered.curve
    timed = curve[-1]["seconds"] - curve[0]["seconds"]
    return {
        "seconds_a_step": round(timed / max(1, curve[-1]["step"] - curve[0]["step"]), 3),
        "points": len(curve),
    }


def refit(model: Model, plan: Plan, options: argparse.Namespace, share: float) -> dict[str, Any]:
    """Least squares of every layer, on four times the text; forwards: plain ones of that text."""
    text = windows(argparse.Namespace(**{**vars(options), "windows": 4 * options.windows}), seed=3)
    seconds, _ = clock(lambda: window_losses(model.network, text))
    seconds, _ = clock(lambda: window_losses(model.network, text))
    with mock.patch.object(layers, "SHARE", share):
        spent, found = clock(lambda: refit_experts(model, plan, text))
    return {
        "tokens": text.tokens.size,
        "seconds_a_layer": round(spent / len(found.layers), 3),
        "forwards": round(spent / seconds, 1),
        "ridges": [layer.ridge for layer in found.layers],
        "left": [round(layer.after / layer.before, 5) for layer in found.layers],
    }


def whole_forwards(anatomy: Anatomy, text: Windows, plans: list[Plan]) -> np.ndarray:
    """The plain way: a forward of the restricted model for every plan."""
    losses = []
    for plan in plans:
        with restricted(anatomy, plan):
            losses.append(window_losses(anatomy.model, text))
    return np.stack(losses)


@torch.no_grad()
def logits(anatomy: Anatomy, tokens: torch.Tensor) -> torch.Tensor:
    """Of a plain forward."""
    found: torch.Tensor = anatomy.model(input_ids=tokens, use_cache=False).logits
    return found


def opened(folder: Path, options: argparse.Namespace, mode: Any) -> Model:
    """The model in a folder, on the device."""
    layout = lay_out(open_checkpoint(folder))
    return Model(layout, device=options.device, memory=MemorySettings(mode))


def half(model: Model) -> Plan:
    """The even experts."""
    kept = tuple(range(0, model.shape.num_experts, 2))
    return Plan(model.shape.num_experts, dict.fromkeys(model.shape.layers, kept))


def windows(options: argparse.Namespace, seed: int) -> Windows:
    """Random tokens."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, options.vocabulary, (options.windows, options.length))
    rows = np.arange(len(tokens))
    names = tuple(map(str, rows))
    return Windows(tokens, np.ones_like(tokens, bool), rows, np.zeros_like(rows), names, ("random",))


def clock(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the work returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, found


if __name__ == "__main__":
    main()
