"""The token-level audit (docs/methods.md, 3): does the criterion rank the active experts of a token by worth?

Worth is what an expert's removal costs. diff = outcome of removing the high-ranked expert − outcome of
removing the low-ranked one, one per position; a cell is a (criterion, layer). Raw rows in, cells out: the
same statistics for our measurements and for those of others. The protocol is that of
https://arxiv.org/abs/2606.10703.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pandas as pd

from experts.arrays import Array, Ids
from validate.audit_cells import Cell, Tested
from validate.expert_pairs import CONTROLS
from validate.results import AuditJson, PassingJson
from validate.statistics import (
    Association,
    Correction,
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
from validate.verdict import ALPHA, AUDIT_RULE, cell_passes

CORRECTIONS = (Correction.BONFERRONI, Correction.HOLM, Correction.BENJAMINI_HOCHBERG)
Correlations = Mapping[tuple[int, str], Association]  # by (decoder layer, criterion)


class Outcome(StrEnum):
    """What a removal is measured by, in nats."""

    DELTA = "delta"  # signed: the rise of the loss
    ABSOLUTE = "absolute"  # |ΔCE|: how much the prediction changed, for better or worse
    KL = "kl"  # KL(clean ‖ ablated): how much the distribution changed, whatever token came


@dataclass(frozen=True)
class CorrectedP:
    """The p values of one cell after a correction."""

    t: float
    wilcoxon: float


def audit_outcomes(rows: pd.DataFrame, ddof: int, correlations: Correlations | None = None) -> AuditJson:
    """Audit the rows by every outcome they have.

    Args:
        rows: of `read_positions`
        ddof: of the standard deviation in Cohen's d
        correlations: rank correlations with ΔCE, where they are known
    """
    cells = {Outcome.DELTA: audit(rows, Outcome.DELTA, ddof, correlations)}
    cells[Outcome.ABSOLUTE] = audit(rows, Outcome.ABSOLUTE, ddof)
    if "high_kl" in rows:
        cells[Outcome.KL] = audit(rows, Outcome.KL, ddof)
    in_json = {outcome.value: [cell.to_json() for cell in judged] for outcome, judged in cells.items()}
    return {
        "rule": AUDIT_RULE,
        "ddof": ddof,
        "alpha": ALPHA,
        "passing": {outcome.value: passing(judged) for outcome, judged in cells.items()},
        "cells": in_json.pop(Outcome.DELTA),
        "outcomes": in_json,
    }


def audit(
    rows: pd.DataFrame,
    outcome: Outcome = Outcome.DELTA,
    ddof: int = 1,
    correlations: Correlations | None = None,
) -> list[Cell]:
    """Judge every cell by one outcome.

    Correction: α / (criteria × layers) for criteria, α / layers for each control, as published. A cell that
    cannot be tested counts.

    Args:
        rows: of `read_positions`, one per position and criterion
        outcome: what a removal is measured by
        ddof: of the standard deviation in Cohen's d
        correlations: rank correlations inside the active set, where they are known

    Returns:
        Cells by criterion in the order of the rows, controls last, and by layer.
    """
    families: dict[str, list[Tested]] = {}
    for (criterion, layer), group in rows.groupby(["criterion", "layer"], sort=False):
        name = criterion if criterion in CONTROLS else ""
        families.setdefault(name, []).append(_test(criterion, int(layer), group, outcome, ddof))
    cells: list[Cell] = []
    for family in families.values():
        cells += _judge(family, correlations or {})
    order = list(dict.fromkeys(rows["criterion"]))
    return sorted(cells, key=lambda cell: (cell.is_control, order.index(cell.criterion), cell.layer))


def passing(cells: list[Cell]) -> PassingJson:
    """Count the cells of criteria that pass; controls are left out."""
    judged = [cell for cell in cells if not cell.is_control]
    return {
        "cells": sum(cell.passes for cell in judged),
        "of": len(judged),
        "cells_holm": sum(cell.passes_by[Correction.HOLM] for cell in judged),
        "cells_benjamini-hochberg": sum(cell.passes_by[Correction.BENJAMINI_HOCHBERG] for cell in judged),
    }


def _test(criterion: str, layer: int, group: pd.DataFrame, outcome: Outcome, ddof: int) -> Tested:
    high, low = _side(group, "high", outcome), _side(group, "low", outcome)  # [n] each
    differences = high - low
    t, signed_rank, size = paired_t(differences), wilcoxon(differences), cohens_d(differences, ddof)
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
        p_wilcoxon=signed_rank.p,
        p_clustered=clustered.p,
        low=interval.low,
        high=interval.high,
        documents=documents,
        share_high_larger=share_positive(differences),
        reason=t.reason or signed_rank.reason,
    )


def _side(group: pd.DataFrame, side: str, outcome: Outcome) -> Array:
    """The outcome of removing the high- or the low-ranked expert at every position [n]."""
    column = "kl" if outcome is Outcome.KL else "delta"
    values: Array = group[f"{side}_{column}"].to_numpy(np.float64)
    return np.abs(values) if outcome is Outcome.ABSOLUTE else values


def _over_documents(differences: Array, texts: Ids) -> tuple[int | None, Test, Interval]:
    """How many documents, and test and interval over them; none where the rows do not name them (−1)."""
    if (texts < 0).any():
        reason = "the rows do not say which document they are of"
        return None, Test.absent(len(texts), reason), Interval.absent(0, reason)
    each, documents = np.ones(len(texts)), np.unique(texts, return_inverse=True)[1]
    interval = clustered_interval(differences, each, documents)
    return int(documents.max()) + 1, clustered_p(differences, each, documents), interval


def _judge(family: list[Tested], correlations: Correlations) -> list[Cell]:
    by_correction = {correction: _corrected(family, correction) for correction in CORRECTIONS}
    cells = []
    for place, tested in enumerate(family):
        p = {correction: values[place] for correction, values in by_correction.items()}
        correlation = correlations.get((tested.layer, tested.criterion))
        cells.append(_cell(tested, p, len(family), correlation.rho if correlation else math.nan))
    return cells


def _corrected(family: list[Tested], correction: Correction) -> list[CorrectedP]:
    t = corrected([tested.p_t for tested in family], correction)
    signed_rank = corrected([tested.p_wilcoxon for tested in family], correction)
    return [CorrectedP(float(p_t), float(p_w)) for p_t, p_w in zip(t, signed_rank, strict=True)]


def _cell(tested: Tested, p: Mapping[Correction, CorrectedP], cells: int, spearman: float) -> Cell:
    """A cell with its verdict. cells: how many the family has."""
    level, fewest = ALPHA / cells, documents_needed(cells, ALPHA)
    bonferroni = p[Correction.BONFERRONI]
    high, low = tested.mean_high, tested.mean_low
    measured = {**vars(tested), "reason": tested.reason or _too_few(tested.n, fewest, cells)}
    return Cell(
        **measured,
        smallest_detectable_d=smallest_detectable_d(tested.n, level) if tested.n >= fewest else math.nan,
        needed_n=_needed(tested.d, level, fewest),
        alpha=level,
        passes=cell_passes(bonferroni.t, bonferroni.wilcoxon, high, low),
        inverted=cell_passes(bonferroni.t, bonferroni.wilcoxon, low, high),
        passes_by={
            correction.value: cell_passes(values.t, values.wilcoxon, high, low)
            for correction, values in p.items()
        },
        spearman=spearman,
    )


def _too_few(n: int, fewest: int, cells: int) -> str:
    """Why no effect could make a cell of so few positions pass; empty where one could."""
    if n >= fewest:
        return ""
    after = f"after correction for {cells} cells"
    return f"n = {n}: {after} the Wilcoxon test cannot pass with fewer than {fewest} positions"


def _needed(d: float, level: float, fewest: int) -> int | None:
    """Positions that the t-test needs for an effect d; never fewer than the Wilcoxon test needs to pass."""
    positions = needed_n(d, level)
    return None if positions is None else max(positions, fewest)
