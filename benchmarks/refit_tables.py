"""The evidence on the refit: plans and random plans before and after it, by domain, as rows and as tables.

    python -m benchmarks.refit_tables ROWS.jsonl measure --model demo --criterion reap --criterion reap_sum
        [--fraction 0.5 --scope layer --chosen code+prose --refitted code+prose --randoms 20 --seed 0]
    python -m benchmarks.refit_tables ROWS.jsonl print

--model is the demo or a folder of benchmarks.own_models. --chosen and --refitted name texts, joined by +:
domains of the model, or `samples` with --samples FILE, JSON lines with the ids of a window under `tokens`.
`--refitted none`: no refit. Options that take several values are crossed. A row that is there is not measured
again, so an interrupted run goes on; random plans serve all criteria with the same counts.
"""

import argparse
import itertools
from argparse import Namespace
from pathlib import Path

from tqdm import tqdm

from benchmarks.refit_markdown import tables
from benchmarks.refit_rows import TRAINED, Bench, Case, Rows, randoms_of
from benchmarks.refit_texts import Texts, default_data


def measure(options: Namespace, rows: Rows) -> None:
    """All cases of one model and seed."""
    texts = Texts(options.model, options.data, options.samples, options.windows, options.held_out_windows)
    bench = Bench(options.model, options.seed, texts, rows)
    bench.unpruned()
    cases = list(cases_of(options))
    with tqdm(total=len(cases) * (1 + options.randoms), desc=options.model, unit="plan") as bar:
        for case in cases:
            row = bench.run(case)
            bar.update(1)
            for other in randoms_of(case, row, options.randoms):
                bench.run(other)
                bar.update(1)


def cases_of(options: Namespace) -> list[Case]:
    """Every fraction, scope, text and criterion with each other."""
    crossed = itertools.product(
        options.fraction, options.scope, options.chosen, options.refitted, options.criterion
    )
    return [
        Case(options.model, options.seed, fraction, scope, chosen, criterion, "", refitted)
        for fraction, scope, chosen, asked, criterion in crossed
        for text in [{"none": "", "same": chosen}.get(asked, asked)]
        for refitted in [text + TRAINED if text and options.local else text]
    ]


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("rows", type=Path)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("print", help="Markdown tables of all rows")
    work = verbs.add_parser("measure", help="add rows")
    work.add_argument("--model", default="demo")
    work.add_argument("--data", type=Path, default=default_data())
    work.add_argument("--criterion", nargs="+", default=["reap", "reap_sum"])
    work.add_argument("--fraction", type=float, nargs="+", default=[0.5])
    work.add_argument("--scope", nargs="+", choices=["layer", "global"], default=["layer"])
    work.add_argument("--chosen", nargs="+", required=True)
    work.add_argument("--refitted", nargs="+", default=["same"], help="names of texts, same or none")
    work.add_argument("--local", action="store_true", help="every layer is trained after its refit")
    work.add_argument("--randoms", type=int, default=20)
    work.add_argument("--seed", type=int, default=0)
    work.add_argument("--samples", type=Path)
    work.add_argument("--windows", type=int, default=64)
    work.add_argument("--held-out-windows", type=int, default=32, help="of every domain")
    options = parser.parse_args()
    rows = Rows(options.rows)
    if options.verb == "measure":
        measure(options, rows)
    else:
        print("\n\n".join(tables(list(rows.known.values()))))


if __name__ == "__main__":
    main()
