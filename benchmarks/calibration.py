"""Calibration against a plain forward of the same windows: seconds as a ratio of pairs, and peak memory.

    python -m benchmarks.calibration [--hidden 256 --inner 512 --windows 8 --length 512 --rounds 7]

Model: a random OLMoE, 64 experts, top-8. "plain" is the forward that calibration itself makes (no logits);
    "with_head" is the
whole causal-LM forward. Memory: peak of the resident set over the level before, of a process each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def build(hidden: int, inner: int):
    import torch
    from transformers import OlmoeConfig, OlmoeForCausalLM

    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_experts=64,
        num_experts_per_tok=8,
        pad_token_id=None,
    )
    return OlmoeForCausalLM(config).eval()


def windows(count: int, length: int):
    from criteria.text.windows import Windows

    tokens = np.random.default_rng(0).integers(0, 4096, (count, length))
    zeros = np.zeros(count, dtype=np.int64)
    return Windows(tokens, np.ones_like(tokens, bool), zeros, zeros, ("random",), ("random",))


def tasks(options: argparse.Namespace):
    """name -> the work to be timed, on one model."""
    import torch

    from criteria.observe import observe
    from experts.anatomy import dissect

    model = build(options.hidden, options.inner)
    anatomy, text = dissect(model), windows(options.windows, options.length)
    tokens = text.tensor("cpu")

    def plain() -> None:
        with torch.no_grad():
            model.base_model(input_ids=tokens, use_cache=False)

    def with_head() -> None:
        with torch.no_grad():
            model(input_ids=tokens, use_cache=False)

    def calibrate() -> None:
        observe(anatomy, text, batch=len(text))

    def with_razor() -> None:
        observe(anatomy, text, batch=len(text), forms=["reroute"])

    return {"plain": plain, "with_head": with_head, "calibrate": calibrate, "with_razor": with_razor}


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratios(options: argparse.Namespace) -> dict[str, float]:
    work = tasks(options)
    for task in work.values():
        task()
    rounds = [{name: seconds(task) for name, task in work.items()} for _ in range(options.rounds)]
    return {
        "ratio_to_plain": round(statistics.median(r["calibrate"] / r["plain"] for r in rounds), 3),
        "ratio_to_plain_with_razor": round(
            statistics.median(r["with_razor"] / r["plain"] for r in rounds), 3
        ),
        "ratio_to_forward_with_head": round(
            statistics.median(r["calibrate"] / r["with_head"] for r in rounds), 3
        ),
        "seconds_plain": round(statistics.median(r["plain"] for r in rounds), 3),
    }


def peak_mib(name: str, count: int) -> float:
    """Peak resident memory of the named work in a process of its own, in MiB over the level before it."""
    arguments = [*sys.argv[1:], "--windows", str(count), "--only", name]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.calibration", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return float(done.stdout)


def measure_peak(options: argparse.Namespace) -> float:
    import resource

    work = tasks(options)[options.only]
    status = Path("/proc/self/status").read_text()
    before = int(status.split("VmRSS:")[1].split()[0])
    work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("hidden", 256), ("inner", 512), ("windows", 8), ("length", 512), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(measure_peak(options))
        return
    result: dict[str, object] = dict(ratios(options))
    for count in (options.windows, 2 * options.windows):
        plain, own = peak_mib("plain", count), peak_mib("calibrate", count)
        result[f"memory_{count}_windows_mib"] = {
            "plain": round(plain, 1),
            "calibrate": round(own, 1),
            "extra": round(own - plain, 1),
        }
    print(json.dumps({"benchmark": "calibration", **vars(options), **result}, indent=2))


if __name__ == "__main__":
    main()
