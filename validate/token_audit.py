"""The token-level audit (METHODS 3): at one token, does the criterion rank the active experts by what their removal costs?

diff = outcome of removing the high-ranked expert − outcome of removing the low-ranked one, a row per position; a cell is a (criterion,
layer). Raw rows in, cells out: the same statistics for measurements of ours and of others.
"""

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from criteria.statistics import Array
from validate.positions import CONTROLS
from validate.statistics import (
    Interval,
    Test,
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


@dataclass(frozen=True, kw_only=True)
class Tested:
    """One (layer, criterion), measured and not judged.

    d: Cohen's d of the paired differences with its 95 % interval. p_*: two-sided, not corrected. p_clustered, low,
    high: permutation test and interval of the mean difference that treat a document, not a position, as one draw;
    documents: how many, None where the rows do not say (then the three are nan).
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
    documents: int | None
    share_high_larger: float
    reason: str

    @property
    def is_control(self) -> bool:
        return self.criterion in CONTROLS


@dataclass(frozen=True, kw_only=True)
class Cell(Tested):
    """The same with its verdict, which takes all cells of its family: there is no cell without one.

    passes: both tests hold after Bonferroni and the high-ranked expert's removal costs more; passes_by: the same under
    each correction. inverted: both tests hold, and it costs less: the criterion ranks the wrong way round.
    smallest_detectable_d: what the t-test at the corrected α finds with 80 % power; needed_n: positions it needs for
    the d that was seen. spearman: mean over positions, inside the active set.
    """

    smallest_detectable_d: float
    needed_n: int | None
    alpha: float
    passes: bool
    inverted: bool
    passes_by: dict[str, bool]
    spearman: float = math.nan

    def to_json(self) -> dict[str, Any]:
        """JSON has neither nan nor infinity."""

        def entry(value: Any) -> Any:
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return {name: entry(value) for name, value in asdict(self).items()}


def outcomes_of(rows: pd.DataFrame) -> list[Outcome]:
    """The outcomes these rows have."""
    return [Outcome.DELTA, Outcome.ABSOLUTE, *([Outcome.KL] if "high_kl" in rows else [])]


def audit(rows: pd.DataFrame, outcome: Outcome = Outcome.DELTA, ddof: int = 1) -> list[Cell]:
    """Every cell of `rows` (validate.positions), criteria first, then the controls.

    Correction: α / (criteria × layers) for criteria, α / layers for each control, as published. A cell that cannot be tested counts.
    """
    families: dict[str, list[Tested]] = {}
    for (criterion, layer), group in rows.groupby(["criterion", "layer"], sort=False):
        families.setdefault(criterion if criterion in CONTROLS else "", []).append(
            _cell(criterion, int(layer), group, outcome, ddof)
        )
    found = [cell for cells in families.values() for cell in _judged(cells)]
    order = list(dict.fromkeys(rows["criterion"]))
    return sorted(found, key=lambda cell: (cell.is_control, order.index(cell.criterion), cell.layer))


def _cell(criterion: str, layer: int, group: pd.DataFrame, outcome: Outcome, ddof: int) -> Tested:
    high, low = _sides(group, outcome)
    differences = high - low
    t, signed, size = paired_t(differences), wilcoxon(differences), cohens_d(differences, ddof)
    documents, clustered, interval = _over_documents(differences, group["text"].to_numpy())
    return Tested(
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
        p_clustered=clustered.p,
        low=interval.low,
        high=interval.high,
        documents=documents,
        share_high_larger=share_positive(differences),
        reason=t.reason or signed.reason,
    )


def _over_documents(differences: Array, texts: NDArray[np.int64]) -> tuple[int | None, Test, Interval]:
    """How many documents, and test and interval over them; nothing where the rows do not name them (< 0)."""
    if (texts < 0).any():
        reason = "the rows do not say which document they are of"
        return None, Test(math.nan, math.nan, len(texts), reason), Interval(math.nan, math.nan, 0, reason)
    each, documents = np.ones(len(texts)), np.unique(texts, return_inverse=True)[1]
    interval = clustered_interval(differences, each, documents)
    return int(documents.max()) + 1, clustered_p(differences, each, documents), interval


def _sides(group: pd.DataFrame, outcome: Outcome) -> tuple[Array, Array]:
    column = "kl" if outcome is Outcome.KL else "delta"
    high, low = (group[f"{side}_{column}"].to_numpy(np.float64) for side in ("high", "low"))
    return (np.abs(high), np.abs(low)) if outcome is Outcome.ABSOLUTE else (high, low)


def _judged(cells: list[Tested]) -> list[Cell]:
    """The family's cells with their verdicts: both tests must hold, and high must cost more than low."""
    after = {
        correction: [
            corrected([getattr(cell, name) for cell in cells], correction) for name in ("p_t", "p_wilcoxon")
        ]
        for correction in CORRECTIONS
    }
    level, fewest, found = ALPHA / len(cells), documents_needed(len(cells), ALPHA), []
    for number, cell in enumerate(cells):
        p = {
            correction.value: (float(t[number]), float(signed[number]))
            for correction, (t, signed) in after.items()
        }
        few = f"n = {cell.n}: after correction for {len(cells)} cells the Wilcoxon test cannot pass with fewer than {fewest} positions"
        pairs_needed = needed_n(cell.d, level)
        found.append(
            Cell(
                **{**vars(cell), "reason": cell.reason or (few if cell.n < fewest else "")},
                alpha=level,
                smallest_detectable_d=smallest_detectable_d(cell.n, level) if cell.n >= fewest else math.nan,
                needed_n=pairs_needed and max(pairs_needed, fewest),
                passes=cell_passes(*p[Correction.BONFERRONI.value], cell.mean_high, cell.mean_low),
                inverted=cell_passes(*p[Correction.BONFERRONI.value], cell.mean_low, cell.mean_high),
                passes_by={
                    name: cell_passes(*both, cell.mean_high, cell.mean_low) for name, both in p.items()
                },
            )
        )
    return found


def passing(cells: list[Cell]) -> dict[str, int]:
    """How many cells of criteria pass, of how many; controls are not among them."""
    judged = [cell for cell in cells if not cell.is_control]
    others = (Correction.HOLM, Correction.BENJAMINI_HOCHBERG)
    by = {f"cells_{name}": sum(cell.passes_by[name] for cell in judged) for name in others}
    return {"cells": sum(cell.passes for cell in judged), "of": len(judged), **by}
