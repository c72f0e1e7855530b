"""Which experts a token-level audit compares: the highest- and the lowest-ranked active expert of a position.

`effects` is the table of `validate.effect_table`, with all k active experts of each of P positions, and the
columns `window` (number of the window) and `document` (number of its document).
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from criteria.scores import Scores
from experts.arrays import Array
from validate.positions import COLUMNS, KL_COLUMNS
from validate.statistics import Association, spearman_within

GATE_WEIGHT = (
    "control:gate_weight"  # positive control: the token's own gate weights in the role of a criterion
)
RANDOM_PAIR = "control:random_pair"  # negative control: two active experts at random
CONTROLS = (GATE_WEIGHT, RANDOM_PAIR)
SHARED_COLUMNS = ("layer", "document", "window", "position", "baseline_loss")  # one value per position


def pick_pairs(effects: pd.DataFrame, table: list[Scores], seed: int) -> pd.DataFrame:
    """Pick two experts to compare at every position, by every criterion and control.

    high = argmax and low = argmin of the criterion over the active set; the controls pick by gate weight, and
    at random. Ties are broken at random: by id or by rank, something else than the criterion would choose. An
    expert without score is lowest.

    Args:
        effects: measured removals of all active experts
        table: scores of every criterion
        seed: of the ties and of the random pairs

    Returns:
        One row per position and criterion, with the columns `COLUMNS` and `KL_COLUMNS`.
    """
    picked = []
    for layer, rows, k in _layers(effects):
        ties = np.random.default_rng([seed, layer]).random((len(rows) // k, k))
        for name, values in _values(rows, table, layer, k).items():
            picked.append(_extremes(rows, name, values, ties))
    return pd.concat(picked, ignore_index=True)


def rank_correlations(effects: pd.DataFrame, table: list[Scores]) -> dict[tuple[int, str], Association]:
    """Return Spearman's ρ between scores and measured ΔCE inside the active set, mean over positions.

    Args:
        effects: measured removals of all active experts
        table: scores of every criterion

    Returns:
        By (decoder layer, criterion), the gate weight among them.
    """
    correlations = {}
    for layer, rows, k in _layers(effects):
        delta = rows["delta"].to_numpy().reshape(-1, k)
        for name, values in _values(rows, table, layer, k).items():
            if name != RANDOM_PAIR:
                correlations[layer, name] = spearman_within(values, delta)
    return correlations


def _layers(effects: pd.DataFrame) -> Iterator[tuple[int, pd.DataFrame, int]]:
    """Every decoder layer, its P·k rows in order, and k."""
    for layer, rows in effects.groupby("layer"):
        k = int(rows.groupby(["window", "position"]).size().iloc[0])
        yield int(layer), rows.sort_values(["window", "position", "rank"], kind="stable"), k


def _values(rows: pd.DataFrame, table: list[Scores], layer: int, k: int) -> dict[str, Array]:
    """What every criterion and control says of the active experts [P, k]."""
    expert = rows["expert"].to_numpy().reshape(-1, k)
    values = {}
    for scores in table:
        of_layer = scores.values[scores.layers.index(layer)]
        values[scores.criterion] = np.where(np.isnan(of_layer), -np.inf, of_layer)[expert]
    values[GATE_WEIGHT] = rows["gate_weight"].to_numpy().reshape(-1, k)
    values[RANDOM_PAIR] = np.zeros(expert.shape)  # all tied, so that the ties decide
    return values


def _extremes(rows: pd.DataFrame, criterion: str, values: Array, ties: Array) -> pd.DataFrame:
    """The rows of the experts with the highest and the lowest value; `ties` [P, k] orders equal values."""
    order = np.lexsort((ties, values), axis=1)
    low, high = order[:, 0], order[:, -1]
    columns: dict[str, Array] = {}
    for name in SHARED_COLUMNS:
        columns[name] = _entries(rows[name], low)
    for name in ("expert", "delta", "kl"):
        columns[f"high_{name}"] = _entries(rows[name], high)
        columns[f"low_{name}"] = _entries(rows[name], low)
    return pd.DataFrame({"criterion": criterion, **columns})[[*COLUMNS, *KL_COLUMNS]]


def _entries(column: pd.Series, rank: NDArray[np.intp]) -> Array:
    """Of a column of P·k rows, the entry of one expert at every position [P]."""
    entries: Array = column.to_numpy().reshape(len(rank), -1)[np.arange(len(rank)), rank]
    return entries
