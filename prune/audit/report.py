"""What `excise audit` says: the same tables for the terminal and for audit.md."""

from collections.abc import Iterator
from typing import Any

from prune.compare.report import Table
from prune.tables import markdown_table, percent, plain, probability, signed
from validate.verdict import marked_point

NAMES = {"delta": "signed ΔCE", "absolute": "|ΔCE|", "kl": "KL(clean ‖ ablated)"}


def tables(result: dict[str, Any], outcome: str = "delta", intervals: bool = False) -> Iterator[Table]:
    """Title, head and rows: the cells of one outcome, then the curves, with their intervals where there is room for them."""
    cells = cells_of(result, outcome)
    ranked = any("spearman" in cell and cell["spearman"] is not None for cell in cells)
    size = f"d (ddof {result['ddof']}) [95 %]"
    head: tuple[str, ...] = (
        "criterion",
        "layer",
        "n",
        "high",
        "low",
        size,
        "p (t)",
        "p (Wilcoxon)",
        "p (documents)",
        "high > low",
    )
    head += ("smallest d", "n for this d", "passes")
    yield (
        f"Audit by {NAMES[outcome]}",
        (*head, *(("Spearman",) if ranked else ())),
        [_row(cell, ranked) for cell in cells],
    )
    if "progressive" in result:
        yield from _curves(result["progressive"], intervals)


def cells_of(result: dict[str, Any], outcome: str) -> list[dict[str, Any]]:
    """The cells by an outcome."""
    found: list[dict[str, Any]] = result["cells"] if outcome == "delta" else result["outcomes"][outcome]
    return found


def _row(cell: dict[str, Any], ranked: bool) -> tuple[str, ...]:
    return (
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
        "passes" if cell["passes"] else "inverted" if cell["inverted"] else cell["reason"] or "no",
        *((signed(cell["spearman"], 2),) if ranked else ()),
    )


def _curves(result: dict[str, Any], intervals: bool) -> Iterator[Table]:
    """Mean ΔCE against the number of removed experts, a table per layer."""
    layers = list(dict.fromkeys(one["layer"] for one in result["curves"]))
    for layer in layers:
        curves = [one for one in result["curves"] if one["layer"] == layer]
        most = max(len(one["mean"]) for one in curves)
        lines = []
        for one in curves:
            values = [_point(one, number, intervals) for number in range(len(one["mean"]))]
            lines.append((one["order"], *values, *[""] * (most - len(values)), str(one["cliff"] or "none")))
        title = f"Progressive removal, layer {layer}: mean ΔCE with so many experts gone; * better, ! worse than 95 % of random orders"
        yield title, ("order", *(str(n) for n in range(1, most + 1)), f"cliff (> {result['cliff']})"), lines


def _point(one: dict[str, Any], number: int, intervals: bool) -> str:
    mark = marked_point(one["p"][number], one["p_worse"][number])
    low, high = one["interval"][number]
    ends = f" [{signed(low)}, {signed(high)}]" if intervals else ""
    around = f" ± {plain(one['sd'][number])}" if one["sd"] else ends
    return f"{signed(one['mean'][number])}{mark}{around}"


def summary(result: dict[str, Any]) -> list[str]:
    """One line per outcome, and what the controls say."""
    lines = [
        f"{NAMES[name]}: {found['cells']} of {found['of']} cells pass (by Holm {found['cells_holm']}, by Benjamini-Hochberg "
        f"{found['cells_benjamini-hochberg']})"
        for name, found in result["passing"].items()
    ]
    for control in dict.fromkeys(
        cell["criterion"] for cell in result["cells"] if cell["criterion"].startswith("control:")
    ):
        counts = []
        for name in result["passing"]:
            cells = [cell for cell in cells_of(result, name) if cell["criterion"] == control]
            counts.append(f"{sum(cell['passes'] for cell in cells)} of {len(cells)} by {NAMES[name]}")
        lines.append(f"{control}: passes in {', '.join(counts)}")
    return [*lines, *result.get("notes", [])]


def markdown(result: dict[str, Any]) -> str:
    """The whole report."""
    parts = [
        f"# {result['model']['name']}: token-level audit\n",
        "\n".join(f"- {line}" for line in summary(result)) + "\n",
    ]
    for outcome in result["passing"]:
        for title, head, lines in tables(
            result if outcome == "delta" else {**result, "progressive": {"curves": []}},
            outcome,
            intervals=True,
        ):
            parts.append(f"## {title}\n\n{markdown_table(head, lines)}\n")
    formulas = "\n".join(f"- {name}: {formula}" for name, formula in result["formulas"].items())
    parts.append(
        f"## Rule\n{result['rule']}\n\n## Scores\n{formulas}\n\n## How it was computed\n{METHODS.format(**result)}"
    )
    return "\n".join(parts)


METHODS = """\
- Removal: scope {scope}, mode {mode}. At every position high and low are the active experts with the highest and lowest score, ties
  broken at random; control:gate_weight ranks by the token's own gate weights, control:random_pair takes two active experts at random.
- diff = outcome(high) − outcome(low), a row per position (`positions.csv`; `effects.parquet` has every active expert).
- p (t): scipy.stats.ttest_1samp; p (Wilcoxon): scipy.stats.wilcoxon; d = mean / sd, its interval from the noncentral t; p (documents):
  the signs of whole documents flipped (scipy.stats.permutation_test), because positions of one text are not independent.
- smallest d: what the t-test finds with 80 % power at the corrected α; n for this d: the positions it would need for the d that was seen.
- Spearman: mean over positions, inside the active set.
- Progressive removal: at a token the active experts in descending gate weight (mode zero, that token alone); from a layer in the order of
  the scores, lowest first (mode reroute, every token). p of a point: (1 + #random orders at least as good, or as bad) / (draws + 1), not
  corrected for the number of points; ± of random: sd over its orders. Intervals resample documents. Rows: `progressive.csv`.
"""
