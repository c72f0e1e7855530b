"""Decoder layers from disk, one by one, read ahead or not: CPU seconds per GB, and peak memory in layers.

    python -m benchmarks.layers [--layers 16 --tokens 2048 --folder /tmp]

A synthetic checkpoint in the shape of OLMoE-1B-7B (13.8 GB with 16 layers), removed afterwards. Each layer is
loaded, its MoE block runs on some tokens, and it is dropped; two rounds, of which the second is warm. Every
way runs in a process of its own. "settings" are those of glibc that keep it from returning memory.
"""

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path

from benchmarks.processes import measured
from benchmarks.shapes import OLMOE, Softmax
from benchmarks.synthetic import synthetic

WORK = """
import os, time
if sys.argv[3] == "settings" and "MALLOC_ARENA_MAX" not in os.environ:
    os.environ |= {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "4294967296"}
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
import torch
from experts.anatomy import dissect
from experts.disk.shards import open_checkpoint
from experts.streaming.open import open_streamed


def status(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) * 1024


network, weights = open_streamed(open_checkpoint(Path(sys.argv[1])), ahead=sys.argv[2] == "ahead")
blocks = [layer.block for layer in dissect(network).layers]
hidden = torch.randn(1, int(sys.argv[4]), network.config.hidden_size).to(network.dtype)
base, outside = status("VmRSS"), weights.bytes_read
for _ in range(2):
    before, start, wall = weights.bytes_read, time.process_time(), time.perf_counter()
    computing = 0.0
    for span in weights.spans():
        with weights.loaded(span), torch.no_grad():
            began = time.thread_time()
            blocks[span.start](hidden)
            computing += time.thread_time() - began
    gigabytes = (weights.bytes_read - before) / 1e9
    loading = time.process_time() - start - computing
result["read_gb"] = round(gigabytes, 3)
result["loading_cpu_seconds_per_gb"] = round(loading / gigabytes, 2)
result["computing_cpu_seconds"] = round(computing, 2)
result["seconds"] = round(time.perf_counter() - wall, 2)
largest = max(weights.sizes.layer_bytes)
result["resident_gb"] = round(weights.sizes.resident_bytes / 1e9, 3)
result["largest_layer_gb"] = round(largest / 1e9, 3)
result["peak_in_layers"] = round((status("VmHWM") - base) / largest, 2)
"""
WAYS = {
    "on demand": ("demand", "plain"),
    "ahead": ("ahead", "plain"),
    "on demand, settings": ("demand", "settings"),
    "ahead, settings": ("ahead", "settings"),
}


def measure(folder: Path, shape: Softmax, tokens: int) -> dict[str, object]:
    """Write the checkpoint, read it in every way, remove it."""
    with synthetic(folder, shape):
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        ways = {name: measured(WORK, folder, *way, tokens) for name, way in WAYS.items()}
    return {"gigabytes": round(size / 1e9, 3), **ways}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=OLMOE.layers)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    shape = dataclasses.replace(OLMOE, layers=options.layers)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        result = measure(Path(name) / "model", shape, options.tokens)
    loads = {"load_before": load_before, "load_after": os.getloadavg()[0]}
    print(json.dumps({"benchmark": "layers", **loads, **result}, indent=2))


if __name__ == "__main__":
    main()
