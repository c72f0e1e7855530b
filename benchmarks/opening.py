"""Checkpoints of real sizes, opened layer by layer and inspected: CPU seconds and peak memory.

    python -m benchmarks.opening [--model deepseek-v3 --model qwen3-30b --folder /tmp]

Sparse files with true headers: they take no space on the disk. DeepSeek-V3 has 90,427 tensors in FP8,
Qwen3-30B-A3B 18,867 in bfloat16. Each is opened in a process of its own: everything outside the decoder
layers is read, names and shapes of all layers are checked. Then `excise inspect` runs on it.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from benchmarks.processes import measured
from benchmarks.shapes import QWEN3_30B, DeepSeekV3, Softmax
from benchmarks.shards import size, write_sparse

MODELS: dict[str, Softmax | DeepSeekV3] = {"deepseek-v3": DeepSeekV3(), "qwen3-30b": QWEN3_30B}
SHARD = 4_300_000_000  # bytes; as on the hub
OPEN = """
from experts.disk.shards import open_checkpoint
from experts.streaming.open import open_streamed
network, weights = open_streamed(open_checkpoint(Path(sys.argv[1])))
"""
INSPECT = """
import contextlib, io
sys.argv = ["excise", "inspect", sys.argv[1], "--json"]
from prune.entry import main
with contextlib.redirect_stdout(io.StringIO()):
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, ended.code
"""


def measure(model: str, folder: Path) -> dict[str, object]:
    """Write a model's headers, open it, inspect it."""
    shape = MODELS[model]
    specs = list(shape.specs())
    write_sparse(folder, specs, shape.config, SHARD)
    return {
        "tensors": len(specs),
        "gigabytes": round(sum(map(size, specs)) / 1e9, 1),
        "open": measured(OPEN, folder),
        "inspect": measured(INSPECT, folder),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", choices=MODELS, help="default: all")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    result: dict[str, object] = {"benchmark": "opening", "load_before": os.getloadavg()[0]}
    for model in options.model or MODELS:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            result[model] = measure(model, Path(name) / "model")
    print(json.dumps({**result, "load_after": os.getloadavg()[0]}, indent=2))


if __name__ == "__main__":
    main()
