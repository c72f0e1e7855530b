"""audit.md, and the tables of `excise audit`: cells by an outcome, then curves of progressive removal."""

from collections.abc import Iterator

from prune.audit.curve_tables import curve_tables
from prune.audit.result import AuditResult, FileAudit
from prune.tables import Table, markdown_table, percent, plain, probability, signed
from validate.results import AuditJson, CellJson

NAMES = {"delta": "signed ΔCE", "absolute": "|ΔCE|", "kl": "KL(clean ‖ ablated)"}


def tables(result: AuditResult | FileAudit, outcome: str) -> Iterator[Table]:
    """For the terminal: the cells by one outcome, then the curves if there are some."""
    yield cell_table(result, outcome)
    if "progressive" in result:
        yield from curve_tables(result["progressive"])


def cells_of(result: AuditJson, outcome: str) -> list[CellJson]:
    """The cells by an outcome."""
    return result["cells"] if outcome == "delta" else result["outcomes"][outcome]


def cell_table(result: AuditJson, outcome: str) -> Table:
    """Every cell by an outcome; the last column only where Spearman was measured."""
    cells = cells_of(result, outcome)
    ranked = any(cell["spearman"] is not None for cell in cells)
    head = [
        "criterion",
        "layer",
        "n",
        "high",
        "low",
        f"d (ddof {result['ddof']}) [95 %]",
        "p (t)",
        "p (Wilcoxon)",
        "p (documents)",
        "high > low",
        "smallest d",
        "n for this d",
        "passes",
    ]
    if ranked:
        head.append("Spearman")
    return Table(f"Audit by {NAMES[outcome]}", head, [_row(cell, ranked) for cell in cells])


def _row(cell: CellJson, ranked: bool) -> list[str]:
    row = [
        cell["criterion"],
        str(cell["layer"]),
        str(cell["n"]),
        signed(cell["mean_high"]),
        signed(cell["mean_low"]),
        f"{signed(cell['d'], 3)} [{signed(cell['d_low'], 2)}, {signed(cell['d_high'], 2)}]",
        probability(cell["p_t"], 4),
        probability(cell["p_wilcoxon"], 4),
        probability(cell["p_clustered"], 4),
        percent(cell["share_high_larger"]),
        plain(cell["smallest_detectable_d"], 2),
        f"{cell['needed_n']:,}" if cell["needed_n"] else "none",
        _verdict(cell),
    ]
    if ranked:
        row.append(signed(cell["spearman"], 2))
    return row


def _verdict(cell: CellJson) -> str:
    """Passes, inverted, or why not."""
    if cell["passes"]:
        return "passes"
    if cell["inverted"]:
        return "inverted"
    return cell["reason"] or "no"


def summary(result: AuditResult | FileAudit) -> list[str]:
    """A line per outcome, a line per control, and the notes."""
    lines = []
    for outcome, passing in result["passing"].items():
        lines.append(
            f"{NAMES[outcome]}: {passing['cells']} of {passing['of']} cells pass "
            f"(by Holm {passing['cells_holm']}, by Benjamini-Hochberg {passing['cells_benjamini-hochberg']})"
        )
    criteria = dict.fromkeys(cell["criterion"] for cell in result["cells"])
    lines += [_control(result, name) for name in criteria if name.startswith("control:")]
    return [*lines, *result["notes"]]


def _control(result: AuditJson, control: str) -> str:
    """How many of a control's cells pass, by every outcome."""
    counts = []
    for outcome in result["passing"]:
        cells = [cell for cell in cells_of(result, outcome) if cell["criterion"] == control]
        passing = sum(cell["passes"] for cell in cells)
        counts.append(f"{passing} of {len(cells)} by {NAMES[outcome]}")
    return f"{control}: passes in {', '.join(counts)}"


def markdown(result: AuditResult) -> str:
    """The whole of audit.md."""
    parts = [f"# {result['model']['name']}: token-level audit\n"]
    parts.append("\n".join(f"- {line}" for line in summary(result)) + "\n")
    parts += [f"## {table.title}\n\n{markdown_table(table)}\n" for table in _report_tables(result)]
    formulas = "\n".join(f"- {name}: {formula}" for name, formula in result["formulas"].items())
    parts += [
        f"## Rule\n{result['rule']}\n",
        f"## Scores\n{formulas}\n",
        f"## How it was computed\n{METHODS.format(scope=result['scope'], mode=result['mode'])}",
    ]
    return "\n".join(parts)


def _report_tables(result: AuditResult) -> Iterator[Table]:
    """Cells by every outcome; the curves, which are of the signed ΔCE, behind its cells."""
    for outcome in result["passing"]:
        yield cell_table(result, outcome)
        if outcome == "delta" and "progressive" in result:
            yield from curve_tables(result["progressive"], intervals=True)


METHODS = """\
- Removal: scope {scope}, mode {mode}. At every position high and low are the active experts with the highest
  and the lowest score, ties broken at random; control:gate_weight ranks by the token's own gate weights,
  control:random_pair takes two active experts at random.
- diff = outcome(high) − outcome(low), a row per position (`positions.csv`; every active expert:
  `effects.parquet`).
- p (t): scipy.stats.ttest_1samp; p (Wilcoxon): scipy.stats.wilcoxon; d = mean / sd, its interval from the
  noncentral t; p (documents): the signs of whole documents flipped (scipy.stats.permutation_test), because
  positions of one document are not independent.
- smallest d: what the t-test finds with 80 % power at the corrected α; n for this d: the positions it would
  need for the d that was observed.
- Spearman: mean over positions, inside the active set.
- Progressive removal: at a token the active experts in descending gate weight (mode zero, that token alone);
  from a layer in the order of the scores, lowest first (mode reroute, every token). p of a point:
  (1 + #random orders at least as good, or as bad) / (draws + 1), not corrected for the number of points;
  ± of random: sd over its orders. Intervals resample documents. Rows: `progressive.csv`.
"""
