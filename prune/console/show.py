"""What the command line prints: tables and results on stdout, notes on stderr."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from experts.notes import tell
from prune.tables import Table, plain, signed

if TYPE_CHECKING:
    from prune.audit.result import AuditResult, FileAudit
    from prune.compare.result import ComparisonResult
    from prune.console.criteria_listing import CriterionJson
    from prune.effects.result import EffectsResult
    from prune.inspect import InspectResult
    from prune.recover.result import RecoveryResult
    from prune.run.result import PruneResult
    from prune.sample.result import SampleResult


def verdicts(result: "PruneResult", as_json: bool) -> None:
    """Print the verdicts of `excise prune`, and where the results are."""
    if as_json:
        print_json(result)
        return
    from prune.run.verdicts import sentences, tables

    for each in tables(result):
        if each.title:
            print(f"\n{each.title}")
        table(each)
    print_lines(sentences(result))
    print(
        "ΔCE: rise of the held-out loss, nats per token, smaller is better. "
        "p: probability that a random plan does at least as well."
    )
    print(f"checkpoint: {result['checkpoint'] or 'none (the recipe stops on this verdict)'}")
    print(f"report:     {result['run']}/report.md")
    if result["recovery"]:
        recovery(result["recovery"], as_json)


def recovery(result: "RecoveryResult", as_json: bool) -> None:
    """Print the tables of `excise finetune`."""
    if as_json:
        print_json(result)
        return
    from prune.recover.report import NO_CONTROL, tables

    _titled(tables(result))
    print(f"Rule: {result['rule']}" if result["leads"] else NO_CONTROL)
    print(f"recovered:  {result['checkpoint']}, adapter {result['adapter']}")
    print(
        f"report:     {result['run']}/recovery.md, recovery.json, healing.csv; "
        "raw rows in losses.csv, recovered_losses.csv"
    )


def comparison(result: "ComparisonResult") -> None:
    """Print the tables of `excise compare`."""
    from prune.compare.report import conclusions, tables

    _titled(tables(result))
    print_lines(conclusions(result))
    print(
        "Cost (ΔCE in nats per token, or share of items lost): smaller is better. "
        "p good, bad: probability that a random plan does at least as well, or at least as badly."
    )
    print(f"Verdict: {result['rule']}")
    items = ", items.csv" if result["tasks"] else ""
    print(
        f"written: {result['run']}/comparison.md, comparison.json, comparison.csv; "
        f"raw rows in losses.csv{items}"
    )


def audit(result: "AuditResult | FileAudit", outcome: str) -> None:
    """Print the cells of `excise audit` by one outcome, and a summary of all outcomes."""
    from prune.audit.report import summary, tables

    _titled(tables(result, outcome))
    print(f"Rule: {result['rule']}")
    print("\n".join(summary(result)))
    if "run" in result:
        print(
            f"written: {result['run']}/audit.md, audit.json, audit.csv; "
            "raw rows in positions.csv, effects.parquet"
        )


def effects(result: "EffectsResult") -> None:
    """Print what `excise effects` wrote."""
    each = ""
    if result["rows_now"]:
        each = f", {plain(1000 * result['seconds'] / result['rows_now'], 2)} ms per row"
    print(
        f"{result['table']}: {result['rows']:,} rows, {result['windows']} windows, "
        f"measured in {plain(result['seconds'], 1)} s{each}"
    )
    if result["rows"]:
        means = f"mean ΔCE {signed(result['mean_delta'], 6)}, mean KL {plain(result['mean_kl'], 6)}"
        print(f"{means} nats per row")


def samples(result: "SampleResult") -> None:
    """Print what `excise sample` wrote, and how it is used."""
    print(
        f"{result['samples']}: {result['windows']} windows of {result['length']} tokens "
        f"(start {result['start']}, temperature {result['temperature']:g}, seed {result['seed']}), "
        f"drawn in {plain(result['seconds'], 1)} s"
    )
    print(f"in a recipe: calibration: {{data: {{sampled: {{file: {result['samples']}}}}}}}")


def model(summary: "InspectResult") -> None:
    """Print the facts of `excise inspect`."""
    from prune.console.facts import facts

    lines = facts(summary)
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in lines))
    notes(summary["notes"])


def criteria(listed: "list[CriterionJson]") -> None:
    """Print the registry and the settings of experiments; papers by number, to keep columns narrow."""
    from criteria.criterion import ARXIV

    rows = []
    for row in listed:
        grows = f" ∝ {row['grows']}" if row["grows"] else ""
        source = row["source"].replace(ARXIV, "")
        rows.append((row["name"], row["formula"], row["needs"], f"{row['cost']:g}{grows}", source))
    table(Table("", ("criterion", "score (higher = keep)", "needs", "cost", "source"), rows))
    print(LEGEND)
    for row in listed:
        for name, setting in row["settings"].items():
            print(f"  {row['name']}:{name}={setting['default']}  {setting['help']}")


LEGEND = """\
g: applied gate weight, f: expert output before weighting, n_e: tokens routed to e, L: MoE layers, \
E: experts, k: active per token.
cost: plain forwards of the calibration text; criteria that need only text share one pass.
For interventions it is measured on the demo (L, E, k = 6, 16, 4), with what it is proportional to.
source: papers by number, https://arxiv.org/abs/NUMBER.
Also: reversed:<name>, random:<seed>, family:<α>,<β>,mean|sum = Σ g^α·‖f‖^β (/ n), file.py:function.
Settings of interventions, written as name:setting=value,…:"""


def _titled(tables: Iterable[Table]) -> None:
    """Print each table under its title."""
    for each in tables:
        print(f"\n{each.title}")
        table(each)


def table(shown: Table) -> None:
    """Print a table as wide as the terminal, or as 200 columns in a pipe."""
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    # As Text, or [nan, nan] would be read as markup. Names, in the first column, are not broken.
    grid = Grid()
    for column, name in enumerate(shown.head):
        grid.add_column(Text(name), no_wrap=column == 0)
    for row in shown.rows:
        grid.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(grid)


def notes(lines: Iterable[str]) -> None:
    """Show each note on a line of its own, unless it was shown before."""
    for note in lines:
        tell(note)


def print_lines(lines: Iterable[str]) -> None:
    """Print each on a line of its own."""
    for line in lines:
        print(line)


def print_json(data: Any) -> None:
    """Print a result for machines."""
    print(json.dumps(data, indent=2, ensure_ascii=False))
