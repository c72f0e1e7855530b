"""Peak memory of streamed work against what it may take, on checkpoints of 1 GB (a section of growth.py)."""

from pathlib import Path
from typing import Any

from benchmarks.processes import measured
from benchmarks.shapes import Softmax
from benchmarks.synthetic import synthetic
from experts.memory_rule import COPIES

SHAPES = {  # 1 GB each
    "large layers": Softmax(layers=3, experts=32, inner=512, vocabulary=32_000),
    "small layers": Softmax(layers=10, experts=16, inner=256, vocabulary=16_000),
}
TINY_SHAPE = Softmax(
    layers=2,
    experts=8,
    top_k=2,
    hidden=64,
    inner=32,
    heads=2,
    key_heads=2,
    head=32,
    norms=(64, 64),
    vocabulary=256,
)
OTHERS = 600_000_000  # bytes beside weights and streams: the libraries, and what a layer computes
WINDOWS, LENGTH, PLANS = 4, 128, 4
MEMORY = """
import numpy as np
import torch
from criteria.observe import observe
from criteria.text.windows import Windows
from experts.disk.layout import lay_out
from experts.disk.shards import open_checkpoint
from experts.memory_settings import MemorySettings
from experts.model import Model
from experts.plan import Plan
from validate.draw import random_plans
from validate.plan_losses import plan_losses
torch.set_num_threads(1)
now = int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024
result["libraries_gb"] = round(now / 1e9, 3)
count, length, plans = map(int, sys.argv[3:])
model = Model(lay_out(open_checkpoint(Path(sys.argv[1]))), memory=MemorySettings(sys.argv[2]))
shape, weights = model.shape, model.anatomy.weights
rows = np.arange(count)
tokens = np.random.default_rng(0).integers(1, 250, (count, length))
text = Windows(tokens, tokens > 0, rows, 0 * rows, tuple(map(str, rows)), ("random",))
half = Plan(shape.num_experts, dict.fromkeys(shape.layers, tuple(range(0, shape.num_experts, 2))))
nothing = np.zeros((shape.num_layers, shape.num_experts), bool)
observe(model.anatomy, text)
plan_losses(model.anatomy, text, [None, *random_plans(half, shape, nothing, plans, 0)])
if weights.streamed:
    result["resident_bytes"] = weights.sizes.resident_bytes
    result["largest_layer_bytes"] = max(weights.sizes.layer_bytes)
    result["whole_bytes"] = weights.sizes.whole
"""


def memory(folder: Path, shape: Softmax) -> dict[str, Any]:
    """What streamed work takes and may take, and the peak of the same work with all weights in memory."""
    with synthetic(folder, shape):
        streamed = streamed_peak(folder, shape)
        resident = measured(MEMORY, folder, "resident", WINDOWS, LENGTH, PLANS)
    return {**streamed, "resident_peak_gb": resident["peak_gb"]}


def streamed_peak(folder: Path, shape: Softmax) -> dict[str, Any]:
    """Peak of a process that calibrates and measures plans, and what it may take.

    Args:
        folder: of a checkpoint
        shape: of the checkpoint
    """
    found = measured(MEMORY, folder, "streamed", WINDOWS, LENGTH, PLANS)
    outside, largest = found["resident_bytes"], found["largest_layer_bytes"]
    streams = (1 + PLANS) * WINDOWS * LENGTH * shape.hidden * 2
    sizes = {
        "weights_gb": found["whole_bytes"],
        "outside_gb": outside,
        "largest_layer_gb": largest,
        "streams_gb": streams,
        "bound_gb": outside + COPIES * largest + streams + OTHERS,
    }
    in_gb = {name: round(size / 1e9, 3) for name, size in sizes.items()}
    return {**in_gb, "libraries_gb": found["libraries_gb"], "peak_gb": found["peak_gb"]}
