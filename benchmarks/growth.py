"""How the cost of streamed work grows with layers, experts, tokens and plans; whole forwards; peak memory.

    python -m benchmarks.growth [--tiny] [--section memory] [--repetitions 3 --folder /tmp]

Random OLMoE models on disk, visited layer by layer in one thread. CPU seconds, of which those of loading are
timed apart. Sizes of an axis take turns, and every size counts with the median of its repetitions: an
exponent is the slope of a line through log seconds over log size, with its 95 % interval. Streamed work and
whole forwards take turns too. Peak memory is that of a process each, streamed and resident.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.gpu import half, make, opened, whole_forwards, windows
from benchmarks.peaks import SHAPES, TINY_SHAPE, memory, streamed_peak
from benchmarks.synthetic import synthetic
from criteria.observe import observe
from experts.anatomy import Anatomy
from experts.model import Model
from experts.plan import Plan
from experts.weights import LayerWeights
from validate.draw import random_plans
from validate.plan_losses import plan_losses

SMALL = Namespace(
    device="cpu",
    hidden=128,
    inner=64,
    vocabulary=256,
    length=128,
    top_k=4,
    layers=4,
    experts=32,
    tokens=4096,
    plans=4,
)
AXES = {
    "layers": (4, 8, 12, 16, 24),
    "experts": (16, 32, 64, 128, 256),
    "tokens": (2048, 4096, 8192, 16384, 32768),
    "plans": (2, 4, 8, 16, 32),
}
TINY_AXES = {"layers": (2, 3, 4), "experts": (8, 12, 16), "tokens": (64, 128, 256), "plans": (1, 2, 4)}
LARGER = {"hidden": 256, "inner": 256, "length": 256, "layers": 8}  # where whole forwards are compared
TINY = {"hidden": 64, "inner": 32, "length": 32, "tokens": 128, "experts": 8, "plans": 2}
SECTIONS = ("growth", "against_whole", "memory")


class Timed:
    """Streamed weights, and the CPU seconds that they take to come and go.

    Attributes:
        seconds: so far
    """

    streamed = True

    def __init__(self, weights: LayerWeights) -> None:
        self.weights, self.seconds = weights, 0.0

    def spans(self) -> list[range]:
        return self.weights.spans()

    @contextmanager
    def loaded(self, span: range) -> Iterator[None]:
        began = time.process_time()
        with self.weights.loaded(span):
            self.seconds += time.process_time() - began
            yield
            began = time.process_time()
        self.seconds += time.process_time() - began


@dataclasses.dataclass(frozen=True)
class Cost:
    """CPU seconds.

    Attributes:
        total: all
        loading: of them, until weights are there and gone again
    """

    total: float
    loading: float

    @property
    def computing(self) -> float:
        return self.total - self.loading


PARTS = ("total", "loading", "computing")


class Case:
    """A model of some size, and what is done with it."""

    def __init__(self, folder: Path, options: Namespace) -> None:
        make(folder, options, "float32")
        self.folder, self.options = folder, options
        self.model = opened(folder, options, "streamed")
        self.text = windows(Namespace(**vars(options), windows=options.tokens // options.length), seed=1)
        self.plans = plans_of(self.model, options.plans)

    def losses(self, anatomy: Anatomy) -> np.ndarray:
        return plan_losses(anatomy, self.text, self.plans)

    def statistics(self, anatomy: Anatomy) -> object:
        return observe(anatomy, self.text)

    def cost(self, name: str) -> Cost:
        """Of one of the works, streamed."""
        work = self.losses if name == "plan_losses" else self.statistics
        weights = Timed(self.model.anatomy.weights)
        anatomy = dataclasses.replace(self.model.anatomy, weights=weights)
        return Cost(cpu_seconds(lambda: work(anatomy)), weights.seconds)


def plans_of(model: Model, count: int) -> list[Plan]:
    """Random ones that keep half of the experts."""
    nothing = np.zeros((model.shape.num_layers, model.shape.num_experts), dtype=bool)
    return random_plans(half(model), model.shape, nothing, count, seed=0)


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def growth(folder: Path, axis: str, sizes: tuple[int, ...], base: Namespace, rounds: int) -> dict[str, Any]:
    """Seconds and exponents along one axis, for plans and, where it has a meaning, for calibration."""
    cases = [Case(folder / f"{axis}-{size}", Namespace(**{**vars(base), axis: size})) for size in sizes]
    found: dict[str, Any] = {"sizes": sizes}
    for work in ("plan_losses", "observe")[: 1 if axis == "plans" else 2]:
        cases[0].cost(work)  # the first pass pays for what is made once
        costs = [[case.cost(work) for case in cases] for _ in range(rounds)]
        found[work] = {part: _fitted(sizes, costs, part) for part in PARTS}
    return found


def _fitted(sizes: tuple[int, ...], costs: list[list[Cost]], part: str) -> dict[str, Any]:
    """A part of the costs by size, and its exponent. costs: [rounds][sizes]"""
    seconds = [
        statistics.median(getattr(cost, part) for cost in of_size) for of_size in zip(*costs, strict=True)
    ]
    return {"cpu_seconds": [round(each, 3) for each in seconds], **exponent(sizes, seconds)}


def exponent(sizes: tuple[int, ...], seconds: list[float]) -> dict[str, Any]:
    """The slope of log seconds over log size, by least squares, and its 95 % interval."""
    fit = stats.linregress(np.log(sizes), np.log(seconds))
    width = stats.t.ppf(0.975, len(sizes) - 2) * fit.stderr
    return {
        "exponent": round(float(fit.slope), 3),
        "interval": [round(float(fit.slope - width), 3), round(float(fit.slope + width), 3)],
    }


def against_whole(folder: Path, options: Namespace, rounds: int) -> dict[str, Any]:
    """Losses of plans, streamed, against a whole forward of the restricted model each: ratios of pairs."""
    case = Case(folder, options)
    whole = opened(folder, options, "resident").anatomy
    expected = whole_forwards(whole, case.text, case.plans)
    same = bool(np.array_equal(expected, case.losses(case.model.anatomy)))
    plain, streamed = [], []
    for _ in range(rounds):
        plain.append(cpu_seconds(lambda: whole_forwards(whole, case.text, case.plans)))
        streamed.append(case.cost("plan_losses"))
    ratios = [cost.computing / seconds for cost, seconds in zip(streamed, plain, strict=True)]
    return {
        **vars(options),
        "bit_equal": same,
        "computing_to_whole": round(statistics.median(ratios), 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
        "whole_cpu_seconds": round(statistics.median(plain), 3),
        "loading_cpu_seconds": round(statistics.median(cost.loading for cost in streamed), 3),
    }


def measure(folder: Path, section: str, tiny: bool, rounds: int) -> dict[str, Any]:
    """One of the sections."""
    base = Namespace(**{**vars(SMALL), **(TINY if tiny else {})})
    if section == "growth":
        axes = TINY_AXES if tiny else AXES
        return {axis: growth(folder, axis, sizes, base, rounds) for axis, sizes in axes.items()}
    if section == "against_whole":
        larger = Namespace(**{**vars(base), **({} if tiny else LARGER)})
        return against_whole(folder / "larger", larger, rounds + 2)
    if tiny:
        with synthetic(folder / "synthetic", TINY_SHAPE):
            return {"tiny": streamed_peak(folder / "synthetic", TINY_SHAPE)}
    return {name: memory(folder / "synthetic", shape) for name, shape in SHAPES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing, in seconds")
    parser.add_argument("--section", action="append", choices=SECTIONS, help="default: all")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        result = {
            section: measure(Path(name), section, options.tiny, options.repetitions)
            for section in options.section or SECTIONS
        }
    loads = {"load_before": load_before, "load_after": os.getloadavg()[0]}
    print(json.dumps({"benchmark": "growth", **loads, **result}, indent=2))


if __name__ == "__main__":
    main()
