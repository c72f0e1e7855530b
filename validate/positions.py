"""The raw rows of an audit in a CSV file: what removing the high- and the low-ranked expert of a token costs.

One row per comparison. The columns are those of the released measurements of arXiv 2606.10703
(https://arxiv.org/abs/2606.10703), so that one reader serves theirs and ours.
"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from experts.arrays import Array, Ids
from experts.errors import ExciseError, one_line

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
# What names a document: ours, and in the released files the batch and the row in it.
DOCUMENT_COLUMNS = ("document", "sample", "batch")
LARGEST = 1e100  # nats; sums of squares of larger numbers overflow
MOST_LAYERS = 10**6


def read_positions(path: Path) -> pd.DataFrame:
    """Read a CSV file of positions.

    It has the columns `layer`, `criterion` or `metric`, `high_delta` and `low_delta` (nats), may have
    `high_kl` and `low_kl` (nats), and names the document of a row by `document`, or by `sample` and `batch`.

    Returns:
        The file's rows, with one column more, `text`: a number per document. Where the file names none, every
        row is its own; where then rows repeat, so that there are several texts and nothing tells whose a row
        is, −1.

    Raises:
        ExciseError: that names row and column.
    """
    table = _read(path)
    _check_head(path, table)
    if "criterion" not in table:
        table = table.rename(columns={"metric": "criterion"})
    _check_one_model(path, table)
    for column in (*NEEDED, *KL_COLUMNS):
        if column in table:
            table[column] = _numbers(path, table, column)
    table["layer"] = table["layer"].astype(int)
    for column in ("criterion", *DOCUMENT_COLUMNS):
        if column in table:
            _check_filled(path, table, column)
    table["text"] = _texts(path, table)
    return table


def document_note(rows: pd.DataFrame) -> str:
    """Return what a reader has to know about rows that do not name their document; empty where they do."""
    if any(name in rows for name in DOCUMENT_COLUMNS):
        return ""
    head = f"the rows have no column {', '.join(DOCUMENT_COLUMNS[:-1])} or {DOCUMENT_COLUMNS[-1]}"
    if (rows["text"] < 0).any():
        why = "they come from several texts, so p (documents) and its interval are absent"
        return f"{head}, and positions repeat: {why}"
    return f"{head}: in p (documents) every position counts as a text of its own"


def _read(path: Path) -> pd.DataFrame:
    """Every cell as text."""
    try:
        with warnings.catch_warnings():
            # More cells than the header has names.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # Blank lines are kept, so that a row's number is its line's.
            table = pd.read_csv(
                path, dtype=str, keep_default_na=False, index_col=False, skip_blank_lines=False
            )
    except FileNotFoundError as error:
        raise ExciseError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise ExciseError(f"{path}: not UTF-8 text (byte {error.start})") from error
    # EmptyDataError is a ValueError.
    except (ValueError, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise ExciseError(f"{path}: not a CSV table ({one_line(error)})") from error
    table = table.fillna("")  # cells that a short line lacks
    while len(table) and (table.iloc[-1] == "").all():
        table = table.iloc[:-1]
    return table


def _check_head(path: Path, table: pd.DataFrame) -> None:
    missing = [name for name in NEEDED if name not in table]
    or_metric = ""
    if "criterion" not in table and "metric" not in table:
        missing, or_metric = ["criterion", *missing], " (or metric)"
    if missing:
        names = " or ".join(missing) + or_metric
        raise ExciseError(f"{path}: no column {names}; it has {', '.join(map(str, table.columns))}")
    if table.empty:
        raise ExciseError(f"{path}: no rows below its header")


def _check_one_model(path: Path, table: pd.DataFrame) -> None:
    models = table["model"].unique() if "model" in table else ()
    if len(models) > 1:
        count = f"rows of {len(models)} models ({', '.join(models)})"
        raise ExciseError(f"{path}: {count}; the correction is per model, so give one file each")


def _numbers(path: Path, table: pd.DataFrame, column: str) -> Array:
    """The numbers of a column: finite, of a size that a loss can have, and layers whole."""
    values: Array = pd.to_numeric(table[column], errors="coerce").to_numpy(np.float64)
    usable = np.abs(values) <= LARGEST
    if column == "layer":
        usable &= np.equal(np.mod(values, 1), 0) & (values >= 0) & (values < MOST_LAYERS)
    if len(wrong := np.flatnonzero(~usable)):
        first = int(wrong[0])
        kind = "layer number" if column == "layer" else _kind_of(values[first])
        what = f"{table[column].iloc[first]!r} is not a {kind}"
        raise ExciseError(f"{_cell(path, first, column)}: {what} {_such_cells(len(wrong))}")
    return values


def _kind_of(value: float) -> str:
    """What an unusable number is not."""
    return "loss that a model can have" if np.isfinite(value) else "finite number"


def _check_filled(path: Path, table: pd.DataFrame, column: str) -> None:
    if len(empty := np.flatnonzero(table[column] == "")):
        raise ExciseError(f"{_cell(path, int(empty[0]), column)}: is empty {_such_cells(len(empty))}")


def _cell(path: Path, row: int, column: str) -> str:
    """Where a cell is; row 1 is the header."""
    return f"{path}: row {row + 2}, column {column}"


def _such_cells(count: int) -> str:
    return f"({count} such cells; row 1 is the header)"


def _texts(path: Path, table: pd.DataFrame) -> pd.Series | Ids | int:
    """A number per document [N], or −1.

    Raises:
        ExciseError: where a row repeats an earlier one and the two are known to be of the same text.
    """
    named = [name for name in DOCUMENT_COLUMNS if name in table]
    key = ["layer", "criterion", *named, *(name for name in ("window", "position") if name in table)]
    repeated = np.flatnonzero(table.duplicated(key)) if "position" in table else np.array([])
    if len(repeated) and (named or "window" in table):
        same = f"{', '.join(key)} are the same; {len(repeated)} such rows"
        raise ExciseError(f"{path}: row {int(repeated[0]) + 2} repeats an earlier one ({same})")
    if named:
        return table.groupby(named, sort=False).ngroup()
    return -1 if len(repeated) else np.arange(len(table))
