"""How the cost of a layer's refit grows with kept experts K, inner units I and tokens T; its peak memory.

    python -m benchmarks.refit_growth [--tiny] [--repetitions 3]

Random features of one layer, top-4, width H = 256, one thread: filling the equations, choosing λ, and the
last solution, all experts at once (joint) or one after another (blocks). CPU seconds are medians; an exponent
is the slope of log seconds over log size with its 95 % interval. Peak memory is the growth of a process of
its own over what it began with, beside what the formula promises for the joint way and what stored features
take for the other.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import psutil
import torch
from torch import Tensor

from benchmarks.growth import exponent
from finetune.refit.blocks import Blocks
from finetune.refit.equations import Equations, Features
from finetune.refit.joint import Joint

WAYS: dict[str, type[Equations]] = {"joint": Joint, "blocks": Blocks}
BASE = Namespace(experts=8, inner=128, tokens=8192, width=256, top_k=4, batch=2048)
AXES: dict[str, tuple[int, ...]] = {
    "experts": (4, 8, 12, 16),
    "inner": (64, 128, 192, 256),
    "tokens": (4096, 8192, 16384, 32768),
}
TINY = {"inner": 16, "tokens": 256, "width": 32, "batch": 64}
TINY_AXES: dict[str, tuple[int, ...]] = {
    "experts": (4, 6, 8),
    "inner": (8, 16, 24),
    "tokens": (128, 256, 512),
}


def batches(size: Namespace) -> Iterator[tuple[list[Features], Tensor]]:
    """Features and what is lacking, batch by batch; every token goes to top_k of K experts."""
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(size.inner, size.width, generator=draw) / size.inner**0.5
    for _ in range(size.tokens // size.batch):
        order = torch.rand(size.batch, size.experts, generator=draw).argsort(1)
        chosen = order < size.top_k
        features = []
        lacking = torch.randn(size.batch, size.width, generator=draw)
        for expert in range(size.experts):
            tokens = torch.nonzero(chosen[:, expert])[:, 0]
            values = torch.randn(len(tokens), size.inner, generator=draw)
            lacking[tokens] += values @ mix
            features.append(Features(tokens, values))
        yield features, lacking


def refit(size: Namespace, way: str) -> float:
    """CPU seconds of a layer."""
    began = time.process_time()
    new: Any = WAYS[way]
    equations = new(size.experts, size.inner, size.width, torch.device("cpu"))
    for number, (features, lacking) in enumerate(batches(size)):
        equations.add(number % 2, features, lacking)
    equations.solution(equations.best_ridge())
    return time.process_time() - began


def peak(size: Namespace, way: str) -> dict[str, float]:
    """Megabytes of a process beyond those that it began with, and what they are expected to be."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        grown = pool.apply(_grown, (size, way))
    if way == "joint":
        promised = Joint.bytes_for(size.experts, size.inner, size.width)
    else:  # features, and what is lacking, in float32; squares of the experts and residuals in float64
        rows = size.tokens * (4 * size.top_k * size.inner + 12 * size.width)
        promised = rows + 8 * 3 * size.experts * size.inner * (size.inner + size.width)
    return {"measured_mb": round(grown / 1e6, 1), "promised_mb": round(promised / 1e6, 1)}


def _grown(size: Namespace, way: str) -> float:
    torch.set_num_threads(1)
    refit(Namespace(**{**vars(BASE), **TINY}), way)  # what libraries take once
    began = psutil.Process().memory_info().rss
    refit(size, way)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - began


def growth(base: Namespace, axes: dict[str, tuple[int, ...]], rounds: int) -> dict[str, Any]:
    """Seconds and exponents along every axis, both ways."""
    found: dict[str, Any] = {}
    for axis, sizes in axes.items():
        cases = [Namespace(**{**vars(base), axis: size}) for size in sizes]
        found[axis] = {"sizes": sizes}
        for way in WAYS:
            costs = [[refit(case, way) for case in cases] for _ in range(rounds)]
            seconds = [statistics.median(of_size) for of_size in zip(*costs, strict=True)]
            rounded = [round(each, 3) for each in seconds]
            found[axis][way] = {"cpu_seconds": rounded, **exponent(sizes, seconds)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing, in seconds")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = Namespace(**{**vars(BASE), **(TINY if options.tiny else {})})
    found = growth(base, TINY_AXES if options.tiny else AXES, options.repetitions)
    largest = Namespace(**{**vars(base), **({} if options.tiny else {"experts": 16, "inner": 256})})
    memory = {way: peak(largest, way) for way in WAYS}
    print(json.dumps({"benchmark": "refit_growth", "growth": found, "memory": memory}, indent=2))


if __name__ == "__main__":
    main()
