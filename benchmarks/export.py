"""Export against `cp` of the kept bytes: seconds as a ratio of interleaved pairs, and peak memory.

    python -m benchmarks.export [--size 2.5 --shards 8 --rounds 5 --folder /tmp]
    python -m benchmarks.export --shape deepseek-v3-fp8 [--size 4.5 …]

A synthetic sharded checkpoint with random bytes, half of its experts kept: 8 MoE layers of 64 experts, or the
names and types of DeepSeek-V3 in FP8 with a block scale per weight, 256 experts in 8 router groups and a
multi-token-prediction layer, which is dropped. `cp` copies files that hold exactly the kept bytes. Compared
like with like: "synced", the export as it is against `cp` followed by a sync of what it wrote; "cached", both
without waiting for the disk (the export's fsync is switched off in the measured process). In both the export
computes its checksums and reads everything back, which `cp` does not.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.deepseek import DeepSeek

LAYERS, EXPERTS, HIDDEN = 8, 64, 1024
CONFIG = {
    "model_type": "olmoe",
    "architectures": ["OlmoeForCausalLM"],
    "num_hidden_layers": LAYERS,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 8,
}


def make_source(folder: Path, gigabytes: float, shards: int) -> None:
    """Write config.json, shards and index; experts are as wide as the size that is asked needs."""
    from safetensors.numpy import save_file

    inner = max(64, int(gigabytes * 1e9 / (LAYERS * EXPERTS * 3 * HIDDEN * 2)))
    rng = np.random.default_rng(0)
    names = [
        f"model.layers.{layer}.mlp.experts.{e}.{part}"
        for layer in range(LAYERS)
        for e in range(EXPERTS)
        for part in ("gate", "up", "down")
    ]
    routers = [f"model.layers.{layer}.mlp.gate.weight" for layer in range(LAYERS)]
    every, weights = names + routers, {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        mine = every[shard * len(every) // shards : (shard + 1) * len(every) // shards]
        shapes = {name: (EXPERTS, HIDDEN) if name in routers else (inner, HIDDEN) for name in mine}
        save_file(
            {
                name: rng.integers(0, 2**16, shape, dtype=np.uint16).view(np.float16)
                for name, shape in shapes.items()
            },
            folder / file,
        )
        weights |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    (folder / "config.json").write_text(json.dumps(CONFIG))


def make_plan() -> dict[str, object]:
    rng = np.random.default_rng(1)
    return {
        "experts": EXPERTS,
        "kept": {
            layer: [int(i) for i in np.sort(rng.choice(EXPERTS, EXPERTS // 2, replace=False))]
            for layer in range(LAYERS)
        },
    }


def make_deepseek(folder: Path, gigabytes: float, shards: int, layers: int) -> dict[str, object]:
    """The expert width, in whole blocks of the scales, is the first that reaches the size. Gives the plan."""
    hidden = 2048 if layers < 20 else 256  # with many layers many small tensors: all of DeepSeek-V3's names
    inner = 128
    while (
        model := DeepSeek(hidden=hidden, inner=inner, layers=layers, shards=shards)
    ).size < gigabytes * 1e9:
        inner += 128
    model.write(folder)
    return {"experts": model.experts, "kept": model.kept()}


EXPORT = """
import json, os, sys, time
from pathlib import Path
from typing import Any
from experts.plan import Plan
from prune.checkpoint.write import export
from experts.disk.layout import lay_out
from experts.disk.shards import open_checkpoint
if sys.argv[4] == "cached":
    os.fsync = lambda descriptor: None
start = time.perf_counter()
export(lay_out(open_checkpoint(Path(sys.argv[1]))), Plan.read(Path(sys.argv[2])), Path(sys.argv[3]))
seconds = time.perf_counter() - start
status = Path("/proc/self/status").read_text()
peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps({"seconds": seconds, "peak_mib": peak, "torch": "torch" in sys.modules}))
"""


def run_export(source: Path, plan: Path, out: Path, kind: str) -> dict[str, float]:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    command = [sys.executable, "-c", EXPORT, str(source), str(plan), str(out), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def run_cp(kept: Path, out: Path, kind: str) -> float:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(kept), str(out)], check=True)
    if kind == "synced":
        subprocess.run(["sync", *map(str, out.iterdir())], check=True)
    return time.perf_counter() - start


def compare(rows: list[dict[str, float]]) -> dict[str, float]:
    """Ratios above 1: the export is faster. best: fastest round against fastest, the least disturbed ones."""
    own, cp = ([row[key] for row in rows] for key in ("seconds", "cp"))
    return {
        "median": round(statistics.median(theirs / ours for ours, theirs in zip(own, cp, strict=True)), 3),
        "best": round(min(cp) / min(own), 3),
        "best_seconds_export": round(min(own), 3),
        "best_seconds_cp": round(min(cp), 3),
    }


def main() -> None:
    options = _options()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        measured = _measured(Path(name), options)
    result = {
        "benchmark": "export",
        "shape": options.shape,
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
        **measured,
    }
    print(json.dumps(result, indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=["olmoe", "deepseek-v3-fp8"], default="olmoe")
    parser.add_argument(
        "--size", type=float, help="GB of the source; default 2.5, or 4.5 for deepseek-v3-fp8"
    )
    parser.add_argument(
        "--layers",
        type=int,
        default=6,
        help="decoder layers of deepseek-v3-fp8, the first one dense; the original has 61",
    )
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    return parser.parse_args()


def _measured(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds in a folder, and what comes out of them."""
    source, kept, plan = root / "source", root / "kept", root / "plan.json"
    plan.write_text(json.dumps(_source(source, options)))
    run_export(source, plan, kept, "synced")
    rounds = []
    for kind in ("synced", "cached") * options.rounds:
        seconds = run_cp(kept, root / "cp", kind)
        rounds.append({"kind": kind, "cp": seconds, **run_export(source, plan, root / "out", kind)})
    by_kind = {kind: [row for row in rounds if row["kind"] == kind] for kind in ("synced", "cached")}
    return {
        "tensors": len(json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]),
        "source_gb": _gigabytes(source),
        "kept_gb": _gigabytes(kept),
        **{f"speed_against_cp_{kind}": compare(rows) for kind, rows in by_kind.items()},
        "peak_mib": round(max(row["peak_mib"] for row in rounds), 1),
        "torch_imported": any(row["torch"] for row in rounds),
    }


def _source(folder: Path, options: argparse.Namespace) -> Any:
    """Make the source model, and return a plan for it."""
    folder.mkdir()
    if options.shape == "olmoe":
        make_source(folder, options.size or 2.5, options.shards)
        return make_plan()
    return make_deepseek(folder, options.size or 4.5, options.shards, options.layers)


def _gigabytes(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9, 3)


if __name__ == "__main__":
    main()
