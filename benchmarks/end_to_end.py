"""`excise prune` end to end on a model that does not fit: OLMoE-1B-7B's shape under a limit of 4 GB.

    python -m benchmarks.end_to_end [--tiny --without-resident --folder /tmp]

A synthetic checkpoint (13.8 GB, removed afterwards), half the experts removed by `reap`, tested against its
reverse and 20 random plans. The limit is that of a control group where one can be made (as root), else of the
data segment. The same recipe then runs with all weights in memory, without a limit, which takes 22 GB: plan,
losses, verdicts and checkpoint have to be the same. Bytes read are those that the process asked for; sweeps
are counted as their layers are read.
"""

import argparse
import dataclasses
import filecmp
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.peaks import TINY_SHAPE
from benchmarks.shapes import OLMOE
from benchmarks.synthetic import synthetic

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 4_000_000_000
GROUPS = Path("/sys/fs/cgroup")
# `excise`, which writes down how many bytes of the model's files and how many layers were read, and its peak.
PROGRAM = """
import atexit, json, sys
from pathlib import Path
from experts.streaming.layers import Streamed
found, weights = Path(sys.argv.pop(1)), []
made = Streamed.__init__
def kept(self, *given, **options):
    made(self, *given, **options)
    weights.append(self)
Streamed.__init__ = kept
load, layers = Streamed._load, []
def counted(self, layer):
    load(self, layer)
    layers.append(self)
Streamed._load = counted
@atexit.register
def write():
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    read = sum(one.bytes_read for one in weights)
    size = {one: sum(file.stat().st_size for file in one.folder.glob("*.safetensors")) for one in weights}
    whole = sum(size[one] / len(one.spans()) for one in layers)
    counts = {"streamed_gb": read / 1e9, "layers": len(layers)}
    ratio = round(read / (whole or 1), 3)
    found.write_text(json.dumps({"peak_gb": peak / 1e9, **counts, "read_per_sweep": ratio}))
from prune.entry import main
sys.exit(main())
"""
RECIPE = """
model: {model}
calibration: {{data: {{stdlib: code, split: calibration}}, sequences: 8, length: 128, batch: 8}}
criteria: [reap]
prune: {{fraction: 0.5}}
validate: {{data: {{stdlib: code, split: test}}, sequences: 2, length: 128, random_plans: 20}}
"""
SAME = ("plan.json", "losses.csv", "validation.json")


def measure(folder: Path, shape: Any, with_resident: bool) -> dict[str, Any]:
    """Run streamed under the limit, then resident."""
    with synthetic(folder / "model", shape):
        size = sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors"))
        (folder / "recipe.yaml").write_text(RECIPE.format(model=folder / "model"))
        with enforced(LIMIT) as (kind, enter):
            streamed = run(folder, "streamed", enter)
        result = {"gigabytes": size / 1e9, "limit": f"{LIMIT / 1e9:g} GB of {kind}", "streamed": streamed}
        if with_resident:
            result["resident"] = run(folder, "resident", lambda: None)
            result["same"] = _same(folder / "streamed", folder / "resident")
    return result


def run(folder: Path, mode: str, enter: Callable[[], None]) -> dict[str, Any]:
    """Run the recipe in a process of its own. enter: called in it first."""
    command = [sys.executable, "-c", PROGRAM, folder / "found.json", "prune", folder / "recipe.yaml"]
    options = ["-o", folder / mode, "--set", f"memory.model={mode}", "--json", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EXCISE_CACHE": str(folder / f"cache-{mode}")}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        list(map(str, [*command, *options])),
        env=environment,
        preexec_fn=enter,
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    written = sum(file.stat().st_size for file in (folder / mode).rglob("*") if file.is_file())
    found = json.loads((folder / "found.json").read_text())
    checkpoint = sum(file.stat().st_size for file in (folder / mode / "checkpoint").iterdir())
    seconds = {"seconds": round(time.monotonic() - begun, 1), "cpu_seconds": round(cpu, 1)}
    return {**seconds, **found, "beside_the_checkpoint_gb": (written - checkpoint) / 1e9}


@contextmanager
def enforced(limit: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """A limit of memory: what enforces it, and what a process calls to be under it."""
    group = _new_group(limit)
    if group is None:
        yield "data segment", lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        return
    try:
        yield "control group", lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None
    finally:
        with suppress(OSError):
            group.rmdir()


def _new_group(limit: int) -> Path | None:
    """A control group with this limit; None where none can be made."""
    for parent, name in ((GROUPS / "memory", "memory.limit_in_bytes"), (GROUPS, "memory.max")):
        group = parent / f"excise-{os.getpid()}"
        with suppress(OSError):
            if not (parent / "cgroup.procs").is_file():
                continue
            group.mkdir()
            (group / name).write_text(str(limit))
            return group
        with suppress(OSError):
            group.rmdir()
    return None


def _same(one: Path, other: Path) -> dict[str, bool]:
    """Which files are the same in both runs."""
    names = [*SAME, *(f"checkpoint/{file.name}" for file in (one / "checkpoint").glob("*.safetensors"))]
    return {name: filecmp.cmp(one / name, other / name, shallow=False) for name in sorted(names)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="two small layers")
    parser.add_argument("--without-resident", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    shape = dataclasses.replace(TINY_SHAPE, layers=3) if options.tiny else OLMOE
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        result = measure(folder, shape, not options.without_resident)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"benchmark": "end_to_end", **result}, indent=2))


if __name__ == "__main__":
    main()
