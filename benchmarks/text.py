"""What it costs to take windows out of a text: seconds and peak memory, by size and kind of the file.

    python -m benchmarks.text [--megabytes 50 1000 --kinds text jsonl --windows 128 --length 512]

The text is made of 5,000 random words; the tokenizer is the demo's. "text" is one document, "articles" the
same file with a document every 2,000 characters, "gz" JSON lines. Memory: peak of the resident set
of a process of its own, over the level before the text is read.
"""

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

NAMES = {
    "text": "a.txt",
    "articles": "articles.txt",
    "jsonl": "a.jsonl",
    "json": "a.json",
    "gz": "a.jsonl.gz",
    "parquet": "a.parquet",
}


def block(size: int = 2**20) -> list[str]:
    """Documents of some 2,000 characters, together `size` of them."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbgkjqxz", k=rng.randint(2, 9))) for _ in range(5000)]
    return [" ".join(rng.choices(words, k=300)) for _ in range(size // 2000)]


def rows(size: int) -> Iterator[dict[str, object]]:
    documents, written, number = block(), 0, 0
    while written < size:
        for text in documents:
            yield {"id": number, "text": text}
            written, number = written + len(text), number + 1


def write(kind: str, path: Path, size: int) -> None:
    if kind == "parquet":
        write_parquet(path, size)
        return
    with gzip.open(path, "wt", 1) if kind == "gz" else path.open("w") as file:
        for row in rows(size):
            if kind == "json":
                file.write(("," if row["id"] else "[") + json.dumps(row))
            else:
                plain = f"# {row['id']}\n{row['text']}\n"
                file.write(json.dumps(row) + "\n" if "json" in path.name else plain)
        file.write("]" if kind == "json" else "")


def write_parquet(path: Path, size: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found, schema = rows(size), pa.schema({"id": pa.int64(), "text": pa.string()})
    with pq.ParquetWriter(path, schema) as file:
        while group := list(islice(found, 1000)):
            file.write_table(pa.Table.from_pylist(group, schema))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(path: Path, count: int, length: int) -> dict[str, float]:
    from criteria.text.reading import read_windows
    from criteria.text.sources import Source
    from experts.disk.find import model_folder
    from experts.loading import load_tokenizer

    tokenizer, source = (
        load_tokenizer(model_folder("demo")),
        Source(text=(path,), separator="^# " if path.stem == "articles" else ""),
    )
    before, begun = peak(), time.perf_counter()
    windows = read_windows([source], tokenizer, length=length, sequences=count, seed=0)
    assert len(windows) == count
    return {"seconds": round(time.perf_counter() - begun, 2), "peak_mb": round(peak() - before)}


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[50, 1000])
    parser.add_argument("--kinds", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.windows, options.length)))
        return
    for size in options.megabytes:
        for kind in options.kinds:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / NAMES[kind]
                write(kind, path, size * 10**6)
                asked = [
                    "--windows",
                    str(options.windows),
                    "--length",
                    str(options.length),
                    "--only",
                    str(path),
                ]
                command = [sys.executable, "-m", "benchmarks.text", *asked]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(
                json.dumps({"benchmark": "text", "kind": kind, "megabytes": size, **json.loads(done.stdout)}),
                flush=True,
            )


if __name__ == "__main__":
    main()
