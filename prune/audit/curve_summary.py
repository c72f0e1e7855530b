"""Raw rows of progressive removal in one layer, summed up as curves and written as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from criteria.text.windows import Windows
from experts.arrays import Array, Ids, Marks
from validate.progressive import Curve, curve
from validate.results import CurveJson
from validate.statistics import number

AT_TOKEN = "gate weight, at the token"  # noqa: S105 - an order of removal, not a secret
RANDOM = "random"


@dataclass(frozen=True)
class CurveRows:
    """What was measured in one layer: J removals, P positions, N windows.

    Attributes:
        layer: decoder layer.
        effects: order of removal -> ΔCE, [J, P] at the token, [J, N] from the layer.
        windows: the validation windows that were read [N].
        numbers: their places among all validation windows [N].
        weights: predicted tokens of every window [N].
        chosen: positions at which removal at the token was measured [N, W − 1].
    """

    layer: int
    effects: Mapping[str, Array]
    windows: Windows
    numbers: Ids
    weights: Array
    chosen: Marks


def curves_of(rows: CurveRows, criteria: Sequence[str], draws: int) -> list[CurveJson]:
    """At the token; then by every criterion and its reverse, compared with random orders; then their mean.

    Args:
        draws: random orders, R.
    """
    random = np.stack([rows.effects[f"{RANDOM} {draw}"] for draw in range(draws)])  # [R, J, N]
    chance = _random_means(random, rows.weights)
    curves = [_at_token(rows)]
    for criterion in criteria:
        both = (criterion, f"reversed:{criterion}")
        curves += [_from_layer(rows, order, rows.effects[order], chance) for order in both]
    mean = _from_layer(rows, RANDOM, random.mean(axis=0))
    spread = tuple(map(float, chance.std(axis=0, ddof=1)))
    return [each.to_json() for each in (*curves, replace(mean, sd=spread))]


def _random_means(random: Array, weights: Array) -> Array:
    """Mean ΔCE of every random order [R, J].

    Row by row, as the curves are: an order with the same experts removed must tie to the last bit.
    """
    return np.array([[np.average(row, weights=weights) for row in order] for order in random])


def _at_token(rows: CurveRows) -> Curve:
    values = rows.effects[AT_TOKEN]
    windows, _ = np.nonzero(rows.chosen)
    equal = np.ones(values.shape[1])
    return curve(rows.layer, AT_TOKEN, values, equal, rows.windows.document[windows])


def _from_layer(rows: CurveRows, order: str, values: Array, chance: Array | None = None) -> Curve:
    return curve(rows.layer, order, values, rows.weights, rows.windows.document, chance)


def _to_json(curve: Curve) -> CurveJson:
    return {
        "layer": curve.layer,
        "order": curve.order,
        "mean": list(curve.mean),
        "interval": [[number(interval.low), number(interval.high)] for interval in curve.interval],
        "p": [number(value) for value in curve.p],
        "p_worse": [number(value) for value in curve.p_worse],
        "sd": list(curve.sd),
        "cliff": curve.cliff,
    }


def raw_rows(rows: CurveRows) -> pd.DataFrame:
    """A row per order, removal and window or position, in the columns of progressive.csv.

    `position` is empty where the whole window is read.
    """
    frames = []
    window, position = np.nonzero(rows.chosen)
    for order, values in rows.effects.items():
        at_token = order == AT_TOKEN
        places = window if at_token else np.arange(len(rows.windows))
        removals, each = values.shape
        frame = {
            "layer": rows.layer,
            "order": order,
            "removed": np.repeat(np.arange(1, removals + 1), each),
            "window": np.tile(rows.numbers[places], removals),
            "position": np.tile(position, removals) if at_token else "",
            "document": np.tile(rows.windows.document[places], removals),
            "delta": values.flatten(),
        }
        frames.append(pd.DataFrame(frame))
    return pd.concat(frames)
