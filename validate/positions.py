"""The raw rows of an audit: at one position, what removing the high- and the low-ranked active expert costs. One row per comparison.

The columns are those of the released measurements of arXiv 2606.10703, so that one reader serves theirs and ours.
"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from criteria.scores import Scores
from criteria.statistics import Array
from experts.errors import ExciseError, one_line

GATE_WEIGHT, RANDOM_PAIR = "control:gate_weight", "control:random_pair"
CONTROLS = (GATE_WEIGHT, RANDOM_PAIR)
COLUMNS = (
    "layer",
    "criterion",
    "document",
    "window",
    "position",
    "high_expert",
    "low_expert",
    "baseline_loss",
    "high_delta",
    "low_delta",
)
KL_COLUMNS = ("high_kl", "low_kl")
NEEDED = ("layer", "high_delta", "low_delta")
LARGEST = 1e100  # nats; sums of squares of larger numbers overflow
TEXT_OF = (
    "document",
    "sample",
    "batch",
)  # what a text is called: ours, and batch number and row in the released files


def read_positions(path: Path) -> pd.DataFrame:
    """The rows of a CSV file with `layer`, `metric` or `criterion`, `high_delta`, `low_delta` (`document`, or `sample`, `batch`).

    Adds `text`: a number per document. Where the file names none, every row is its own; where then rows repeat, so
    that there are several texts of which nothing tells the rows apart, it is −1.
    Raises ExciseError that names row and column.
    """
    table = _read(path)
    has = f"it has {', '.join(map(str, table.columns))}"
    if "criterion" not in table and "metric" in table:
        table = table.rename(columns={"metric": "criterion"})
    if missing := [name for name in ("criterion", *NEEDED) if name not in table]:
        raise ExciseError(
            f"{path}: no column {' or '.join(missing)}{' (or metric)' if 'criterion' in missing else ''}; {has}"
        )
    if table.empty:
        raise ExciseError(f"{path}: no rows below its header")
    if "model" in table and len(models := table["model"].unique()) > 1:
        raise ExciseError(
            f"{path}: rows of {len(models)} models ({', '.join(models)}); the correction is per model, so give one file each"
        )
    for column in (*NEEDED, *(name for name in KL_COLUMNS if name in table)):
        table[column] = _numbers(path, table, column)
    table["layer"] = table["layer"].astype(int)
    named = [name for name in TEXT_OF if name in table]
    for column in ("criterion", *named):
        if len(empty := np.flatnonzero(table[column] == "")):
            raise ExciseError(
                f"{path}: row {int(empty[0]) + 2}, column {column}: is empty ({len(empty)} such cells; row 1 is the header)"
            )
    key = ["layer", "criterion", *named, *(name for name in ("window", "position") if name in table)]
    twice = np.flatnonzero(table.duplicated(key)) if "position" in table else np.array([])
    told_apart = bool(named) or "window" in table  # rows of different texts
    if len(twice) and told_apart:
        raise ExciseError(
            f"{path}: row {int(twice[0]) + 2} repeats an earlier one ({', '.join(key)} are the same; {len(twice)} such rows)"
        )
    alone = -1 if len(twice) else np.arange(len(table))
    table["text"] = table.groupby(named, sort=False).ngroup() if named else alone
    return table


def without_documents(rows: pd.DataFrame) -> str:
    """What a reader has to know of rows that do not name their document; empty where they do."""
    if any(name in rows for name in TEXT_OF):
        return ""
    head = f"the rows have no column {', '.join(TEXT_OF[:-1])} or {TEXT_OF[-1]}"
    if (rows["text"] < 0).any():
        what = "they are of several texts, so p (documents) and its interval are absent"
        return f"{head}, and positions repeat: {what}"
    return f"{head}: in p (documents) every position counts as a text of its own"


def _read(path: Path) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # more cells than the header has names
            # Blank lines are kept, so that a row's number is its line's.
            table = pd.read_csv(
                path, dtype=str, keep_default_na=False, index_col=False, skip_blank_lines=False
            )
    except FileNotFoundError as error:
        raise ExciseError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise ExciseError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except (
        ValueError,
        pd.errors.ParserError,
        pd.errors.ParserWarning,
    ) as error:  # EmptyDataError is a ValueError
        raise ExciseError(f"{path}: not a CSV table ({one_line(error)})") from error
    table = table.fillna("")  # cells that a short line lacks
    while len(table) and (table.iloc[-1] == "").all():
        table = table.iloc[:-1]
    return table


def _numbers(path: Path, table: pd.DataFrame, column: str) -> NDArray[np.float64]:
    values: Array = pd.to_numeric(table[column], errors="coerce").to_numpy(np.float64)
    whole = column != "layer" or (np.equal(np.mod(values, 1), 0) & (values >= 0) & (values < 10**6))
    if len(wrong := np.flatnonzero(~((np.abs(values) <= LARGEST) & whole))):
        row = int(wrong[0])
        what = "finite number" if not np.isfinite(values[row]) else "loss that a model can have"
        what = "layer number" if column == "layer" else what
        found = f"{table[column].iloc[row]!r} is not a {what}"
        raise ExciseError(
            f"{path}: row {row + 2}, column {column}: {found} ({len(wrong)} such cells; row 1 is the header)"
        )
    return values


def pairs(effects: pd.DataFrame, table: list[Scores], seed: int) -> pd.DataFrame:
    """Picks two experts to compare at every position of `effects`: all active experts of each, as validate.effects.measure gives them, the
    number of the window in `window`.

    high = argmax, low = argmin of the criterion over the active set; the controls pick by gate weight, and at random. Ties are broken at
    random (seeded): by id or by rank would let something else than the criterion choose. An expert without score is lowest.
    """
    made = []
    for layer, rows in effects.groupby("layer"):
        rows = rows.sort_values(["window", "position", "rank"], kind="stable")
        k = int(rows.groupby(["window", "position"]).size().iloc[0])
        ties = np.random.default_rng([seed, int(layer)]).random((len(rows) // k, k))
        for name, values in _values(rows, table, int(layer), ties, k).items():
            made.append(_picked(rows, name, values, ties, k))
    return pd.concat(made, ignore_index=True)


def _values(rows: pd.DataFrame, table: list[Scores], layer: int, ties: Array, k: int) -> dict[str, Array]:
    """What every criterion and control says of the active experts [P, k]."""
    expert = rows["expert"].to_numpy().reshape(-1, k)
    found = {}
    for scores in table:
        values = scores.values[scores.layers.index(layer)]
        found[scores.criterion] = np.where(np.isnan(values), -np.inf, values)[expert]
    found[GATE_WEIGHT] = rows["gate_weight"].to_numpy().reshape(-1, k)
    found[RANDOM_PAIR] = np.zeros_like(ties)
    return found


def _picked(rows: pd.DataFrame, criterion: str, values: Array, ties: Array, k: int) -> pd.DataFrame:
    order = np.lexsort((ties, values), axis=1)  # by value, equal ones by chance
    low, high = order[:, 0], order[:, -1]
    at = np.arange(len(order))

    def column(name: str, which: NDArray[np.intp]) -> NDArray[np.float64]:
        chosen: NDArray[np.float64] = rows[name].to_numpy().reshape(-1, k)[at, which]
        return chosen

    columns = {
        name: column(name, low) for name in ("layer", "document", "window", "position", "baseline_loss")
    }
    for side, which in (("high", high), ("low", low)):
        columns |= {f"{side}_{name}": column(name, which) for name in ("expert", "delta", "kl")}
    return pd.DataFrame({"criterion": criterion, **columns})[[*COLUMNS, *KL_COLUMNS]]


def orders(effects: pd.DataFrame, table: list[Scores], layer: int) -> dict[str, tuple[Array, Array]]:
    """Criterion -> its values and the measured ΔCE of the active experts at every position of a layer, [P, k] each."""
    rows = effects[effects["layer"] == layer].sort_values(["window", "position", "rank"], kind="stable")
    k = int(rows.groupby(["window", "position"]).size().iloc[0])
    delta = rows["delta"].to_numpy().reshape(-1, k)
    values = _values(rows, table, layer, np.zeros((len(delta), k)), k)
    return {name: (found, delta) for name, found in values.items() if name != RANDOM_PAIR}
