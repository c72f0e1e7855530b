"""Fast effects against plain ways of measuring the same: ratios of interleaved pairs, and agreement.

    python -m benchmarks.effects [--layers 8 --experts 16 --hidden 256 --inner 128 --window 256 --rounds 3
    --dtype float32 --model demo]

position: every active expert of every position and layer of a window as packed rows, against one whole
forward per intervention (a sample of them is timed). corpus: removals of experts of every layer from 8
windows, prefix-cached, against whole forwards. Model: a random OLMoE, or --model, a local checkpoint or
`demo`.

    python -m benchmarks.effects --exhaustive

The whole position audit of the demo: every position, layer and active expert of the test windows of its
recipe, beside what one forward each would take (a sample of 48 is timed).
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch

from tests.support.removals import at_positions, clean_forward, everywhere, replay_position


def build(options: argparse.Namespace) -> Any:
    from experts.anatomy import dissect
    from experts.disk.find import model_folder
    from experts.loading import load_network

    if options.model:
        return dissect(load_network(model_folder(options.model), options.dtype))
    from transformers import OlmoeConfig, OlmoeForCausalLM

    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=4096,
        hidden_size=options.hidden,
        intermediate_size=options.inner,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_experts=options.experts,
        num_experts_per_tok=options.top_k,
        pad_token_id=None,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return dissect(OlmoeForCausalLM(config).to(device, getattr(torch, options.dtype)).eval())


def clock(work: Any) -> tuple[float, Any]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, found


def cells_of(clean: Any, experts: int, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every position that has a next token × every active expert: positions [R], marks [R, E]."""
    index = clean.index[layer][0, :-1]
    where = torch.arange(len(index), device=index.device).repeat_interleave(index.shape[1])
    return where, torch.nn.functional.one_hot(index.reshape(-1), experts).bool()


def position(anatomy: Any, tokens: torch.Tensor, options: argparse.Namespace, mode: Any) -> dict[str, Any]:
    from experts.effects.instrument import Instrument
    from experts.modes import Scope

    instrument = Instrument(anatomy, mode)
    instrument.check(tokens, Scope.POSITION)
    pick, ratios, packed_each, plain_each, gaps = torch.Generator().manual_seed(0), [], [], [], []
    for _ in range(options.rounds):

        def packed() -> list[torch.Tensor]:
            clean = clean_forward(instrument, tokens[:1], Scope.POSITION)
            every = (
                cells_of(clean, anatomy.shape.num_experts, layer) for layer in range(len(anatomy.layers))
            )
            return [
                at_positions(instrument, clean, where, {layer: marks})[0]
                for layer, (where, marks) in enumerate(every)
            ]

        seconds, deltas = clock(packed)
        clean = clean_forward(instrument, tokens[:1], Scope.POSITION)
        total = sum(len(delta) for delta in deltas)
        sample = [
            (layer, int(torch.randint(len(deltas[layer]), (1,), generator=pick)))
            for layer in range(len(deltas))
            for _ in range(4)
        ]

        def plain(sample: Any = sample, clean: Any = clean) -> list[float]:
            found = []
            for layer, row in sample:
                where, marks = cells_of(clean, anatomy.shape.num_experts, layer)
                loss, _ = replay_position(instrument, clean, int(where[row]), {layer: marks[row]})
                found.append(float(loss - clean.losses[0, where[row]]))
            return found

        slow, replayed = clock(plain)
        packed_each.append(seconds / total)
        plain_each.append(slow / len(sample))
        ratios.append(plain_each[-1] / packed_each[-1])
        gaps += [
            abs(delta - float(deltas[layer][row]))
            for (layer, row), delta in zip(sample, replayed, strict=True)
        ]
    return {
        "interventions": total,
        "packed_ms_each": round(1000 * statistics.median(packed_each), 4),
        "one_forward_ms_each": round(1000 * statistics.median(plain_each), 3),
        "times_faster": round(statistics.median(ratios), 1),
        "largest_difference": max(gaps),
        "fell_back": instrument.notes,
    }


def corpus(anatomy: Any, tokens: torch.Tensor, options: argparse.Namespace, mode: Any) -> dict[str, Any]:
    from experts.effects.instrument import Instrument
    from experts.modes import Scope

    instrument = Instrument(anatomy, mode, probabilities=False)
    instrument.check(tokens, Scope.CORPUS)
    chosen = range(0, anatomy.shape.num_experts, max(1, anatomy.shape.num_experts // 8))
    ratios, fast_each, plain_each, gap = [], [], [], 0.0

    def measured() -> list[torch.Tensor]:
        clean = clean_forward(instrument, tokens, Scope.CORPUS)
        eye = torch.eye(anatomy.shape.num_experts, dtype=torch.bool, device=tokens.device)
        return [
            everywhere(instrument, clean, {layer: eye[expert]})[0]
            for layer in range(len(anatomy.layers))
            for expert in chosen
        ]

    for _ in range(options.rounds):
        instrument.enters = True
        fast, one = clock(measured)
        instrument.enters = False
        slow, other = clock(measured)
        fast_each.append(fast / len(one))
        plain_each.append(slow / len(one))
        ratios.append(slow / fast)
        gap = max(gap, max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)))
    return {
        "removals": len(one),
        "cached_ms_each": round(1000 * statistics.median(fast_each), 2),
        "whole_forward_ms_each": round(1000 * statistics.median(plain_each), 2),
        "times_faster": round(statistics.median(ratios), 2),
        "largest_difference": gap,
        "fell_back": instrument.notes,
    }


def exhaustive() -> dict[str, Any]:
    from criteria.text.reading import read_windows
    from experts.anatomy import dissect
    from experts.disk.find import model_folder
    from experts.effects.instrument import Instrument
    from experts.loading import load_network, load_tokenizer
    from experts.modes import Scope
    from prune.recipe.read import read_recipe, recipe_file
    from validate.active_experts import Removals
    from validate.effect_table import measure_effects

    recipe, folder = read_recipe(recipe_file("demo")), model_folder("demo")
    text = recipe.validation
    windows = read_windows(
        text.data, load_tokenizer(folder), length=text.length, sequences=text.sequences, seed=text.seed
    )
    anatomy = dissect(load_network(folder, recipe.dtype))
    tokens, instrument = (
        windows.tensor(anatomy.device),
        Instrument(anatomy),
    )
    instrument.check(tokens, Scope.POSITION)
    layers, tables = tuple(range(len(anatomy.layers))), list[Any]()
    missing = dict.fromkeys(range(len(tokens)), layers)
    seconds, _ = clock(
        lambda: measure_effects(
            instrument, tokens, missing, Removals(Scope.POSITION), lambda *cell: tables.append(cell[2])
        )
    )
    rows = sum(len(table["delta"]) for table in tables)
    clean = clean_forward(instrument, tokens[:1], Scope.SEQUENCE)
    picks = [(layer, position) for layer in range(len(anatomy.layers)) for position in range(0, 255, 32)]
    eye = torch.eye(anatomy.shape.num_experts, dtype=torch.bool, device=tokens.device)
    slow, _ = clock(
        lambda: [
            replay_position(instrument, clean, t, {layer: eye[clean.index[layer][0, t, 0]]})
            for layer, t in picks
        ]
    )
    each = slow / len(picks)
    return {
        "windows": len(tokens),
        "interventions": rows,
        "seconds": round(seconds, 1),
        "one_forward_each_hours": round(rows * each / 3600, 2),
        "times_faster": round(rows * each / seconds, 1),
    }


def main() -> None:
    from experts.modes import Mode

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = {
        "layers": 8,
        "experts": 16,
        "top_k": 4,
        "hidden": 256,
        "inner": 128,
        "window": 256,
        "rounds": 3,
    }
    for name, default in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--model", default="")
    parser.add_argument(
        "--mode", default="zero", choices=[str(mode) for mode in Mode if mode is not Mode.MEAN]
    )
    parser.add_argument("--exhaustive", action="store_true")
    options = parser.parse_args()
    if options.exhaustive:
        print(json.dumps(exhaustive(), indent=2))
        return
    anatomy, mode = build(options), Mode(options.mode)
    device = anatomy.device
    tokens = torch.randint(0, 4096, (8, options.window), generator=torch.Generator().manual_seed(0)).to(
        device
    )
    found = {
        "position": position(anatomy, tokens, options, mode),
        "corpus": corpus(anatomy, tokens, options, mode),
    }
    shape = {
        "layers": len(anatomy.layers),
        "experts": anatomy.shape.num_experts,
        "top_k": anatomy.shape.top_k,
        "window": options.window,
    }
    print(
        json.dumps({"mode": mode, "dtype": options.dtype, "device": str(device), **shape, **found}, indent=2)
    )


if __name__ == "__main__":
    main()
