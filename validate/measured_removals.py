"""Removals measured window by window on a checked instrument.

`validate.effects`, `validate.audit`, `excise effects` and `excise audit` call it. What is finished goes to
the caller, who keeps it in memory or on disk.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from criteria.text.windows import Windows
from experts.effects.instrument import Instrument
from experts.effects.means import mean_outputs
from experts.effects.precision import HALF
from experts.errors import ExciseError
from experts.model import Model
from experts.modes import Mode
from experts.notes import tell
from experts.sweep.progress import bar_around_sweeps
from validate.active_experts import Removals, Table
from validate.effect_table import Keep, measure_effects
from validate.rig import check_rig, rig_plan


@dataclass(frozen=True)
class Measurement:
    """How removals were measured.

    Attributes:
        seconds: that the removals took, without the checks of the instrument
        notes: what a reader of the numbers has to know
    """

    seconds: float
    notes: list[str]


def measure_removals(
    model: Model,
    text: Windows,
    missing: Mapping[int, Sequence[int]],
    removals: Removals,
    *,
    mode: Mode,
    means_of: Windows | None,
    keep: Keep,
    title: str,
) -> Measurement:
    """Check the instrument, then measure what removals cost.

    Args:
        model: loaded if it is not
        text: windows [N, W]
        missing: number of a window -> places of its missing layers among the L MoE layers
        removals: what is removed and read
        mode: what removal means
        means_of: windows whose mean expert outputs mode mean uses
        keep: called with number of the window, place of the layer, and table, as soon as each is finished
        title: of the progress bar, before scope and mode

    Raises:
        ExciseError: the instrument fails a check, or an effect is not finite.
    """
    anatomy = model.anatomy
    check_rig(anatomy, text, rig_plan(anatomy.shape))
    tokens, means = text.tensor(anatomy.device), _means(model, mode, means_of)
    instrument = Instrument.ready(anatomy, mode, removals.scope, tokens, means=means)
    cautions = _cautions(model)
    for caution in cautions:
        tell(caution)
    begun, count = time.monotonic(), sum(map(len, missing.values()))
    title = f"{title} ({removals.scope}, {mode})"
    with bar_around_sweeps(anatomy, title, "window·layer", count) as bar:

        def keep_finite(window: int, row: int, table: Table) -> None:
            _check_finite(model, window, table)
            keep(window, row, table)
            bar.update()

        measure_effects(instrument, tokens, missing, removals, keep_finite)
    return Measurement(time.monotonic() - begun, [*instrument.notes, *cautions])


def by_document(effects: pd.DataFrame, text: Windows) -> pd.DataFrame:
    """The table of effects with the document of every row beside the number of its window."""
    named = effects.rename(columns={"document": "window"})
    named["document"] = text.document[named["window"]]
    return named


def _means(model: Model, mode: Mode, means_of: Windows | None) -> Tensor | None:
    """Mean output of every expert [L, E, H], where the mode needs it."""
    if mode is not Mode.MEAN:
        return None
    assert means_of is not None, "asked for in mode mean"
    return mean_outputs(model.anatomy, means_of.tensor(model.device))


def _cautions(model: Model) -> list[str]:
    """What a reader of the numbers has to know of the model's precision."""
    dtype = model.network.dtype
    if dtype not in HALF:
        return []
    rounding = "single effects carry its rounding, some hundredths of a nat"
    return [f"measured in {dtype}: {rounding}; dtype float32 avoids it"]


def _check_finite(model: Model, window: int, table: Table) -> None:
    if not np.isfinite(table["delta"]).all():
        dtype = model.network.dtype
        raise ExciseError(
            f"window {window}: an effect is not finite; is the model sound in {dtype}? Try float32"
        )
