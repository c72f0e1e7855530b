"""A streamed `excise prune` killed with SIGKILL at random moments: does the same command finish the work?

    python -m benchmarks.killed_runs [--kills 50 --folder /tmp]

A random OLMoE, read layer by layer; the limit of memory is so small that hidden states wait on disk. The
moment is random within the time that an undisturbed run takes. Every killed run is started again and has to
come to the same bytes: plan, scores, losses, verdicts, checkpoint. Layers are counted as they are read: what
both runs read together, above an undisturbed run, was lost. Records are made after every layer here (a real
run makes them so that at most a minute of work is lost, or a layer).
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks.shapes import Softmax
from benchmarks.synthetic import write

ROOT = Path(__file__).resolve().parent.parent
SHAPE = Softmax(
    layers=8, experts=32, top_k=4, hidden=128, inner=64, heads=4, key_heads=4, head=32, norms=(128, 128),
    vocabulary=300,
)  # fmt: skip
# `excise` with a record after every layer, and a line for every layer that is read.
PROGRAM = """
import os, sys
from experts.streaming.layers import Streamed
from experts.sweep import journal
journal.EVERY = 0.0
load, counts = Streamed._load, os.open(sys.argv.pop(1), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def counted(weights, layer):
    load(weights, layer)
    os.write(counts, b"%d\\n" % layer)
Streamed._load = counted
from prune.entry import main
sys.exit(main())
"""
RECIPE = """
model: {model}
dtype: float32
calibration: {{data: {{stdlib: code, split: calibration}}, sequences: 32, length: 64, batch: 8}}
criteria: [reap]
prune: {{fraction: 0.5}}
validate: {{data: {{stdlib: code, split: test}}, sequences: 32, length: 64, batch: 8, random_plans: 20}}
memory: {{model: streamed, limit: {limit}}}
"""
COMPARED = ("plan.json", "scores.safetensors", "losses.csv", "validation.json", "checkpoint")
LIMIT = "12MB"  # the weights take 8.9 at a time, the states of all plans 23
FINISHED = 100  # times what an undisturbed run takes; longer, and something hangs


class Runs:
    """Runs of one recipe.

    Args:
        folder: for everything
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe, self.counts, self.cache = folder / "recipe.yaml", folder / "layers", folder / "cache"
        write(folder / "model", SHAPE)
        self.recipe.write_text(RECIPE.format(model=folder / "model", limit=LIMIT))

    def start(self, name: str) -> "subprocess.Popen[bytes]":
        """Start a run in the folder of that name."""
        self.counts.unlink(missing_ok=True)
        command = [sys.executable, "-c", PROGRAM, self.counts, "prune", self.recipe, "-o", self.folder / name]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "EXCISE_CACHE": str(self.cache)}
        log = (self.folder / "log").open("wb")
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self.folder)

    def layers(self) -> int:
        """How many layers the last run read."""
        return len(self.counts.read_text().splitlines()) if self.counts.exists() else 0

    def whole(self, name: str, longest: float | None = None) -> int:
        """Run to the end. Returns the number of layers that were read."""
        code = self.start(name).wait(longest)
        if code:
            raise RuntimeError(f"exit code {code}: {(self.folder / 'log').read_text()[-1000:]}")
        return self.layers()

    def content(self, name: str) -> dict[str, Any]:
        """What a run has come to."""
        run = self.folder / name
        files = [file for part in COMPARED for file in sorted((run / part, *(run / part).rglob("*")))]
        return {str(file.relative_to(run)): _content(file, name) for file in files if file.is_file()}


def measure(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill runs at random moments and start them again."""
    runs, moments = Runs(folder), random.Random(seed)
    begun = time.monotonic()
    layers = runs.whole("undisturbed")
    seconds = time.monotonic() - begun
    expected = runs.content("undisturbed")
    outcomes: Counter[str] = Counter()
    lost: list[int] = []
    for _ in range(kills):
        shutil.rmtree(runs.cache, ignore_errors=True)  # nothing is known from the run before
        process = runs.start("run")
        time.sleep(moments.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = runs.layers()
        after = runs.whole("run", FINISHED * seconds)
        lost.append(before + after - layers)
        outcomes["same" if runs.content("run") == expected else "different"] += 1
        outcomes["spill left"] += (folder / "run" / "spill").exists()
        shutil.rmtree(folder / "run")
    return {
        "kills": kills,
        "seconds_undisturbed": round(seconds, 1),
        "layers_undisturbed": layers,
        "outcomes": dict(outcomes),
        "layers_lost": {str(count): number for count, number in sorted(Counter(lost).items())},
    }


def _content(file: Path, name: str) -> Any:
    """A file's bytes; results without the paths and times that every run has of its own."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:  # metadata come in any order
            numbers = {key: tensors.get_tensor(key).flatten().tolist() for key in tensors.keys()}  # noqa: SIM118
            return numbers, tensors.metadata()
    if file.suffix != ".json":
        return file.read_bytes()
    text = file.read_text().replace(f"/{name}/", "/run/").replace(f'/{name}"', '/run"')
    found = json.loads(text)
    if isinstance(found, dict):
        for key in ("created", "seconds", "time"):
            found.pop(key, None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        result = measure(Path(name), options.kills, options.seed)
    print(json.dumps({"benchmark": "killed_runs", **result}, indent=2))


if __name__ == "__main__":
    main()
