"""Tables of `excise compare` that need no validation text: overlap and stability of plans, rank agreement."""

from collections.abc import Iterator

from prune.compare.costs import budget_in_words
from prune.compare.result import AgreementJson, ComparisonResult, OverlapJson, StabilityJson
from prune.tables import Table, percent, signed


def overlap_tables(result: ComparisonResult) -> Iterator[Table]:
    """A table per budget: how alike the criteria's plans are, and each one's between calibration seeds."""
    stability = {(row["criterion"], row["scope"], row["fraction"]): row for row in result["stability"]}
    shared = result["windows_shared_by_seeds"]
    same_text = "" if shared is None else f", {percent(shared)} same text"
    for overlap in result["overlap"]:
        names = overlap["criteria"]
        rows = []
        for number, (name, values) in enumerate(zip(names, overlap["matrix"], strict=True), 1):
            seeds = stability[name, overlap["scope"], overlap["fraction"]]
            cells = [signed(value, 2) for value in values]
            rows.append([f"{number} {name}", *cells, _between_seeds(seeds)])
        numbers = [str(number) for number in range(1, len(names) + 1)]
        head = ["criterion", *numbers, f"other seeds{same_text} (smallest)"]
        yield Table(_title(overlap), head, rows)


def _title(overlap: OverlapJson) -> str:
    budget = budget_in_words(overlap["scope"], overlap["fraction"])
    scale = "1 = as alike as their counts allow, 0 = as random plans"
    return f"Overlap of plans beyond chance, {budget} ({scale})"


def _between_seeds(row: StabilityJson) -> str:
    if row["mean"] is None:
        return "not repeated"
    return f"{signed(row['mean'], 2)} ({signed(row['smallest'], 2)})"


def agreement_table(agreement: AgreementJson) -> Table:
    """Rank agreement with the measured removals, layer by layer."""
    title = f"Rank agreement: Spearman with {agreement['reference']} over the experts of a layer"
    head = ["criterion", "mean", *(f"layer {layer}" for layer in agreement["layers"])]
    return Table(title, head, agreement_rows(agreement["spearman"]))


def agreement_rows(spearman: dict[str, list[float | None]]) -> list[tuple[str, ...]]:
    """A row per criterion, best first: mean Spearman over the layers that have one, then layer by layer."""
    means = {criterion: _mean(layers) for criterion, layers in spearman.items()}
    ordered = sorted(means, key=lambda criterion: _or_last(means[criterion]), reverse=True)
    rows = []
    for criterion in ordered:
        values = [means[criterion], *spearman[criterion]]
        rows.append((criterion, *(signed(value, 2) for value in values)))
    return rows


def _mean(layers: list[float | None]) -> float | None:
    numbers = [value for value in layers if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _or_last(mean: float | None) -> float:
    """Below every correlation where there is none."""
    return -2.0 if mean is None else mean
