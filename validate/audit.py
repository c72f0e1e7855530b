"""The token-level audit (METHODS 3): at one token, does the criterion rank the active experts by what their removal costs?

diff = outcome of removing the high-ranked expert − outcome of removing the low-ranked one, a row per position; a cell is a (criterion,
layer). Raw rows in, cells out: the same statistics for measurements of ours and of others.
"""

import math
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from criteria.statistics import Array
from validate.positions import CONTROLS
from validate.statistics import (
    clustered_interval,
    clustered_p,
    cohens_d,
    corrected,
    documents_needed,
    needed_n,
    paired_t,
    share_positive,
    smallest_detectable_d,
    wilcoxon,
)
from validate.verdict import ALPHA, Correction, cell_passes

CORRECTIONS = (Correction.BONFERRONI, Correction.HOLM, Correction.BENJAMINI_HOCHBERG)


class Outcome(StrEnum):
    """What a removal is measured by."""

    DELTA = "delta"  # signed: the rise of the loss
    ABSOLUTE = "absolute"  # |ΔCE|: how much the prediction changed, for better or worse
    KL = "kl"  # KL(clean ‖ ablated): how much the distribution changed, whatever token came


@dataclass(frozen=True)
class Cell:
    """One (layer, criterion). d: Cohen's d of the paired differences with its 95 % interval; p_*: two-sided, not corrected.

    passes: both tests hold after Bonferroni and the high-ranked expert's removal costs more; passes_by: the same under each correction.
    inverted: both tests hold, and it costs less: the criterion ranks the wrong way round.
    p_clustered, low, high: permutation test and interval of the mean difference that treat a document, not a position, as one draw.
    smallest_detectable_d: what the t-test at the corrected α finds with 80 % power; needed_n: positions it needs for the d that was seen.
    spearman: mean over positions, inside the active set.
    """

    layer: int
    criterion: str
    n: int
    mean_high: float
    mean_low: float
    d: float
    d_low: float
    d_high: float
    p_t: float
    p_wilcoxon: float
    p_clustered: float
    low: float
    high: float
    documents: int
    share_high_larger: float
    smallest_detectable_d: float
    needed_n: int | None
    alpha: float
    passes: bool = False
    inverted: bool = False
    passes_by: dict[str, bool] | None = None
    spearman: float = math.nan
    reason: str = ""

    @property
    def is_control(self) -> bool:
        return self.criterion in CONTROLS

    def to_json(self) -> dict[str, Any]:
        return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in asdict(self).items()}


def outcomes_of(rows: pd.DataFrame) -> list[Outcome]:
    """The outcomes these rows have."""
    return [Outcome.DELTA, Outcome.ABSOLUTE, *([Outcome.KL] if "high_kl" in rows else [])]


def audit(rows: pd.DataFrame, outcome: Outcome = Outcome.DELTA, ddof: int = 1) -> list[Cell]:
    """Every cell of `rows` (validate.positions), criteria first, then the controls.

    Correction: α / (criteria × layers) for criteria, α / layers for each control, as published. A cell that cannot be tested counts.
    """
    families: dict[str, list[Cell]] = {}
    for (criterion, layer), group in rows.groupby(["criterion", "layer"], sort=False):
        families.setdefault(criterion if criterion in CONTROLS else "", []).append(_cell(criterion, int(layer), group, outcome, ddof))
    found = [cell for cells in families.values() for cell in _judged(cells)]
    order = list(dict.fromkeys(rows["criterion"]))
    return sorted(found, key=lambda cell: (cell.is_control, order.index(cell.criterion), cell.layer))


def _cell(criterion: str, layer: int, group: pd.DataFrame, outcome: Outcome, ddof: int) -> Cell:
    high, low = _sides(group, outcome)
    differences = high - low
    t, signed, size = paired_t(differences), wilcoxon(differences), cohens_d(differences, ddof)
    # Without documents every position stands for itself.
    texts = group["text"].to_numpy() if (group["text"] >= 0).all() else np.arange(len(group))
    each, texts = np.ones(len(group)), np.unique(texts, return_inverse=True)[1]
    interval = clustered_interval(differences, each, texts)
    return Cell(
        layer=layer,
        criterion=criterion,
        n=len(group),
        mean_high=float(high.mean()),
        mean_low=float(low.mean()),
        d=size.d,
        d_low=size.low,
        d_high=size.high,
        p_t=t.p,
        p_wilcoxon=signed.p,
        p_clustered=clustered_p(differences, each, texts).p,
        low=interval.low,
        high=interval.high,
        documents=len(np.unique(texts)),
        share_high_larger=share_positive(differences),
        smallest_detectable_d=math.nan,
        needed_n=None,
        alpha=math.nan,
        reason=t.reason or signed.reason,
    )


def _sides(group: pd.DataFrame, outcome: Outcome) -> tuple[Array, Array]:
    column = "kl" if outcome is Outcome.KL else "delta"
    high, low = (group[f"{side}_{column}"].to_numpy(np.float64) for side in ("high", "low"))
    return (np.abs(high), np.abs(low)) if outcome is Outcome.ABSOLUTE else (high, low)


def _judged(cells: list[Cell]) -> list[Cell]:
    """The family's cells with their verdicts: both tests must hold, and high must cost more than low."""
    after = {
        correction: [corrected([getattr(cell, name) for cell in cells], correction) for name in ("p_t", "p_wilcoxon")]
        for correction in CORRECTIONS
    }
    level, fewest, found = ALPHA / len(cells), documents_needed(len(cells), ALPHA), []
    for number, cell in enumerate(cells):
        p = {correction.value: (float(t[number]), float(signed[number])) for correction, (t, signed) in after.items()}
        few = f"n = {cell.n}: after correction for {len(cells)} cells the Wilcoxon test cannot pass with fewer than {fewest} positions"
        pairs_needed = needed_n(cell.d, level)
        found.append(
            replace(
                cell,
                alpha=level,
                smallest_detectable_d=smallest_detectable_d(cell.n, level) if cell.n >= fewest else math.nan,
                needed_n=pairs_needed and max(pairs_needed, fewest),
                passes=cell_passes(*p[Correction.BONFERRONI.value], cell.mean_high, cell.mean_low),
                inverted=cell_passes(*p[Correction.BONFERRONI.value], cell.mean_low, cell.mean_high),
                passes_by={name: cell_passes(*both, cell.mean_high, cell.mean_low) for name, both in p.items()},
                reason=cell.reason or (few if cell.n < fewest else ""),
            )
        )
    return found


def passing(cells: list[Cell]) -> dict[str, int]:
    """How many cells of criteria pass, of how many; controls are not among them."""
    judged = [cell for cell in cells if not cell.is_control]
    others = (Correction.HOLM, Correction.BENJAMINI_HOCHBERG)
    by = {f"cells_{name}": sum((cell.passes_by or {})[name] for cell in judged) for name in others}
    return {"cells": sum(cell.passes for cell in judged), "of": len(judged), **by}
