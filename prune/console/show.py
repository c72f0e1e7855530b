"""What the command line prints: tables and results on stdout, notes on stderr."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from criteria.experiment import Option
from experts.notes import tell
from experts.units import human
from prune.tables import plain, signed


def verdicts(result: dict[str, Any], as_json: bool) -> None:
    """The verdicts of `excise prune`, and where things are."""
    if as_json:
        print_json(result)
        return
    from prune.run.report import HEAD, TASK_HEAD, rows, task_rows

    table(HEAD, rows(result))
    if tasks := task_rows(result):
        table(TASK_HEAD, tasks)
    print("ΔCE: rise of the held-out loss, nats per token, smaller is better. p: chance does as well.")
    print(f"checkpoint: {result['checkpoint'] or 'none, the recipe stops on this verdict'}")
    print(f"report:     {result['run']}/report.md")
    if result["recovery"]:
        recovery(result["recovery"], as_json)


def recovery(result: dict[str, Any], as_json: bool) -> None:
    """The tables of `excise finetune`."""
    if as_json:
        print_json(result)
        return
    from prune.recover.report import tables

    for title, head, rows in tables(result):
        print(f"\n{title}")
        table(head, rows)
    print(
        f"Rule: {result['rule']}"
        if result["leads"]
        else "No random plan was recovered, so nothing can be said of the lead."
    )
    print(f"recovered:  {result['checkpoint']}, adapter {result['adapter']}")
    print(
        f"report:     {result['run']}/recovery.md, recovery.json, healing.csv; raw rows in losses.csv, recovered_losses.csv"
    )


def comparison(result: dict[str, Any]) -> None:
    """The tables of `excise compare`."""
    from prune.compare.report import tables

    for title, head, rows in tables(result):
        print(f"\n{title}")
        table(head, rows)
    print(
        "Cost (ΔCE in nats per token, or share of items lost): smaller is better. p: that chance does as well, as badly."
    )
    print(f"Verdict: {result['rule']}")
    print(
        f"written: {result['run']}/comparison.md, comparison.json, comparison.csv; raw rows in losses.csv{_items(result)}"
    )


def _items(result: dict[str, Any]) -> str:
    return ", items.csv" if result["tasks"] else ""


def audit(result: dict[str, Any], outcome: str) -> None:
    """The cells of `excise audit` by one outcome, and the summary of all."""
    from prune.audit.report import summary, tables

    for title, head, rows in tables(result, outcome):
        print(f"\n{title}")
        table(head, rows)
    print(f"Rule: {result['rule']}")
    print("\n".join(summary(result)))
    if "run" in result:
        print(
            f"written: {result['run']}/audit.md, audit.json, audit.csv; raw rows in positions.csv, effects.parquet"
        )


def effects(done: dict[str, Any]) -> None:
    """What `excise effects` wrote."""
    each = f", {1000 * done['seconds'] / done['rows_now']:.2f} ms per row" if done["rows_now"] else ""
    print(
        f"{done['table']}: {done['rows']:,} rows, {done['windows']} windows, measured in {done['seconds']:.1f} s{each}"
    )
    if done["rows"]:
        print(f"mean ΔCE {signed(done['mean_delta'], 6)}, mean KL {plain(done['mean_kl'], 6)} nats per row")


def model(found: dict[str, Any]) -> None:
    """The facts of `excise inspect`."""
    inside, elsewhere = found["parameters"]["experts"], found["parameters"]["elsewhere"]
    lines = [
        ("family", found["family"]),
        ("MoE layers", f"{found['moe_layers']} (decoder layers {found['layers'][0]}..{found['layers'][-1]})"),
        *(_unequal(found) if "kept_per_layer" in found else _experts(found)),
        (
            "parameters",
            f"{inside:,} in experts, {elsewhere:,} elsewhere ({inside / (inside + elsewhere):.1%} in experts)",
        ),
        ("size on disk", f"{human(found['size'])} ({', '.join(found['dtypes'])})"),
    ]
    if found.get("multi_token_prediction_tensors"):
        lines.append(
            ("multi-token head", f"{found['multi_token_prediction_tensors']} tensors, dropped by an export")
        )
    for saving in found.get("savings", ()):
        outcome = (
            saving.get("impossible")
            or f"{human(saving['size'])}, {human(saving['saved'])} less ({saving['keep']} experts per layer)"
        )
        lines.append((f"pruned by {saving['fraction']:.0%}", outcome))
    if found["history"]:
        lines.append(("history", found["history"]))
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in lines))
    notes(found["notes"])


def _experts(found: dict[str, Any]) -> list[tuple[str, str]]:
    groups = (
        "none" if found["groups"] == 1 else f"{found['groups']}, a token uses {found['groups_per_token']}"
    )
    return [
        ("experts per layer", f"{found['experts']}, top-{found['top_k']}"),
        ("router groups", groups),
        ("shared experts", str(found["shared_experts"])),
    ]


def _unequal(found: dict[str, Any]) -> list[tuple[str, str]]:
    counts = ", ".join(f"{layer}: {count}" for layer, count in found["kept_per_layer"].items())
    return [
        (
            "experts per layer",
            f"{counts} (pruned by Excise; load with trust_remote_code=True), top-{found['top_k']}",
        )
    ]


def criteria(listed: list[dict[str, Any]], settings: Mapping[str, Mapping[str, Option]]) -> None:
    """The registry, and the settings of what is measured."""
    head = ("criterion", "score (higher = keep)", "needs", "cost", "source")
    costs = [f"{row['cost']:g}" + (f" ∝ {row['grows']}" if row["grows"] else "") for row in listed]
    lines = [
        (row["name"], row["formula"], row["needs"], cost, row["source"])
        for row, cost in zip(listed, costs, strict=True)
    ]
    table(head, lines)
    print(
        "g: applied gate weight, f: expert output before it, n_e: tokens routed to e, L: MoE layers, E: experts, k: active per token."
    )
    print(
        "cost: plain forwards of the calibration text; all rows that need text alone share one pass. Of interventions: on the demo"
    )
    print("(L, E, k = 6, 16, 4), and what it grows with.")
    print(
        "Also: reversed:<name>, random:<seed>, family:<α>,<β>,mean|sum = Σ g^α·‖f‖^β (/ n), file.py:function."
    )
    print("Settings of interventions, written as name:setting=value,…:")
    for name, options in settings.items():
        for setting, option in options.items():
            print(f"  {name}:{setting}={option.default}  {option.help}")


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table as wide as the terminal, or as it needs in a pipe. [nan, nan] in a cell is no markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in head:
        table.add_column(Text(name))
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    # A pipe has no width: lines are then as long as the table needs.
    (console if console.is_terminal else Console(width=200)).print(table)


def notes(lines: Iterable[str]) -> None:
    """One line each, on stderr; those that were said during the work are not repeated."""
    for note in lines:
        tell(note)


def print_json(data: Any) -> None:
    """For machines."""
    print(json.dumps(data, indent=2, ensure_ascii=False))
