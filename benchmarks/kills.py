"""`excise export` killed with SIGKILL at random moments: does any folder it leaves load wrongly?

    python -m benchmarks.kills [--kills 200 --inner 512 --folder /tmp]

The moment is random within the export: counted from the appearance of its hidden folder, over the time that
an undisturbed export took from there; every tenth kill falls somewhere before. Every other export replaces a
checkpoint that is already there (--force). After a kill every folder that has a config.json is compared, byte
by byte, with what was expected, which is worked out here from the source's bytes and the tensors' names
alone. The checkpoint is a small one in the shape of DeepSeek-V3.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import xxhash

from benchmarks.deepseek import DeepSeek

ROOT = Path(__file__).resolve().parent.parent
Content = dict[str, tuple[str, list[int], str]]  # name -> dtype, shape, digest of the bytes
FINISHED = 100  # times what an undisturbed export takes; longer, and something hangs


def read(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor of the *.safetensors files in a folder, by the format's description and nothing else."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = memoryview(path.read_bytes())
        start = 8 + int.from_bytes(raw[:8], "little")
        for name, entry in json.loads(bytes(raw[8:start])).items():
            first, last = entry["data_offsets"]
            found[name] = (entry["dtype"], entry["shape"], raw[start + first : start + last])
    return found


def content(folder: Path) -> Content:
    return {name: (dtype, shape, _digest(data)) for name, (dtype, shape, data) in read(folder).items()}


def expected(source: Path, model: DeepSeek, kept: dict[str, list[int]]) -> Content:
    """What the export has to hold: experts renumbered, router rows picked, no prediction layer."""
    found: Content = {}
    for name, (dtype, shape, data) in read(source).items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if layer and int(layer[1]) >= model.layers:
            continue
        ids, expert = kept.get(layer[1], []) if layer else [], re.match(r"(.*\.experts\.)(\d+)(\..*)", name)
        if expert:
            if int(expert[2]) in ids:
                found[f"{expert[1]}{ids.index(int(expert[2]))}{expert[3]}"] = (dtype, shape, _digest(data))
        elif ".mlp.gate." in name:
            row = len(data) // shape[0]
            rows = b"".join(data[i * row : (i + 1) * row] for i in ids)
            found[name] = (dtype, [len(ids), *shape[1:]], _digest(rows))
        else:
            found[name] = (dtype, shape, _digest(data))
    return found


def is_right(folder: Path, source: Path, model: DeepSeek, wanted: Content) -> bool:
    """Whether a folder holds exactly the tensors that were expected, and the files beside them."""
    try:
        config = json.loads((folder / "config.json").read_text())
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        same = (folder / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
        whole = content(folder) == wanted and index["weight_map"].keys() == wanted.keys()
    except (OSError, ValueError, KeyError):
        return False
    return bool(
        same
        and whole
        and config["n_routed_experts"] == model.experts // 2
        and config["num_nextn_predict_layers"] == 0
    )


def command(source: Path, plan: Path, out: Path) -> "subprocess.Popen[bytes]":
    line = [
        sys.executable,
        "-m",
        "prune.entry",
        "export",
        str(source),
        str(plan),
        str(out),
        "--quiet",
        "--force",
    ]
    return subprocess.Popen(
        line, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    )


def writes(out: Path, process: "subprocess.Popen[bytes]") -> bool:
    """Whether the hidden folder of this process is there."""
    return any(out.parent.glob(f".{out.name}.{process.pid}-*.partial"))


def undisturbed(source: Path, plan: Path, out: Path) -> tuple[float, float]:
    """Seconds until the hidden folder appears, and from there to the end."""
    begun = time.monotonic()
    process = command(source, plan, out)
    while not writes(out, process) and process.poll() is None:
        time.sleep(0.001)
    appeared = time.monotonic()
    if process.wait():
        raise SystemExit("an undisturbed export failed")
    return appeared - begun, time.monotonic() - appeared


def kill_one(source: Path, plan: Path, out: Path, early: float | None, late: float) -> str:
    """Start an export and kill it.

    early: seconds after the start; None: `late` seconds after its hidden folder appeared.

    Gives where the kill fell: "before", "in" or "after" the writing.
    """
    process, begun = command(source, plan, out), time.monotonic()
    while early is None and not writes(out, process) and process.poll() is None:
        time.sleep(0.0005)
        if time.monotonic() - begun > FINISHED:
            break
    time.sleep(late if early is None else early)
    finished = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    if process.wait() not in (0, -signal.SIGKILL):
        raise SystemExit(f"an export failed by itself, exit code {process.returncode}")
    if writes(out, process):
        return "in"
    return "after" if finished or early is None else "before"


def kill_many(root: Path, model: DeepSeek, kills: int, seed: int = 0) -> dict[str, object]:
    """Kills, where they fell, folders that loaded wrongly, and hidden ones that the next export leaves."""
    source, out, rng = root / "source", root / "out", np.random.default_rng(seed)
    model.write(source)
    plans = [root / "a.json", root / "b.json"]
    for number, plan in enumerate(plans):
        plan.write_text(json.dumps({"experts": model.experts, "kept": model.kept(number)}))
    wanted = [expected(source, model, model.kept(number)) for number in range(2)]
    start, writing = undisturbed(source, plans[0], out)
    fell: Counter[str] = Counter()
    wrong: list[str] = []
    begun = time.monotonic()
    for number in range(kills):
        if number % 2:  # every other export has nothing to replace
            _clear(out)
        early = rng.uniform(0, start) if number % 10 == 9 else None
        fell[kill_one(source, plans[number % 2], out, early, rng.uniform(0, writing))] += 1
        folders = [path for path in root.iterdir() if path != source and (path / "config.json").exists()]
        right = {path for path in folders if any(is_right(path, source, model, each) for each in wanted)}
        wrong += [f"kill {number}: {path.name}" for path in folders if path not in right]
        wrong += (
            [f"kill {number}: {out.name} without config.json"] if out.exists() and out not in folders else []
        )
    hidden = _hidden(root)
    undisturbed(source, plans[1], out)
    return {
        "kills": kills,
        "fell": {where: fell[where] for where in ("before", "in", "after")},
        "loaded_wrongly": wrong,
        "hidden_before_the_last_export": len(hidden),
        "hidden_after_it": len(_hidden(root)),
        "last_export_is_right": is_right(out, source, model, wanted[1]),
        "seconds_per_export": {"until_it_writes": round(start, 3), "writing": round(writing, 3)},
        "source_mb": round(sum(file.stat().st_size for file in source.iterdir()) / 1e6, 1),
        "seconds": round(time.monotonic() - begun, 1),
    }


def _hidden(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.name.startswith(".out.")]


def _clear(out: Path) -> None:
    if out.exists():
        for file in out.iterdir():
            file.unlink()
        out.rmdir()


def _digest(data: bytes) -> str:
    return str(xxhash.xxh3_128_hexdigest(data))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inner", type=int, default=512, help="width of an expert")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    model = DeepSeek(hidden=1024, inner=options.inner, layers=4, experts=64, vocabulary=2048, shards=5)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        print(
            json.dumps(
                {"benchmark": "kills", **kill_many(Path(name), model, options.kills, options.seed)}, indent=2
            )
        )


if __name__ == "__main__":
    main()
