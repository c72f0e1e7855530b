"""The content of audit.json, which `excise audit --json` prints."""

from typing import NotRequired, TypedDict, final

from prune.results import CellJson, ModelJson, TextsJson

# Cells of criteria, without controls: "cells" pass by the rule (Bonferroni), of "of"; "cells_holm" and
# "cells_benjamini-hochberg" pass by the other corrections.
PassingJson = dict[str, int]


class AuditJson(TypedDict):
    """Every cell (criterion, layer) with its verdict."""

    rule: str  # when a cell passes
    ddof: int  # degrees of freedom taken off in the standard deviation of d
    alpha: float  # before correction
    passing: dict[str, PassingJson]  # outcome -> how many cells pass
    cells: list[CellJson]  # by the signed ΔCE, criteria first, then controls
    outcomes: dict[str, list[CellJson]]  # the other outcomes -> their cells


class CurveJson(TypedDict):
    """One curve of progressive removal, J points."""

    layer: int  # decoder layer
    order: str  # which expert goes first: a criterion, its reverse, gate weight or chance
    mean: list[float]  # ΔCE after 1, 2, … removals, nats [J]
    interval: list[list[float | None]]  # its 95 % interval over documents [J, 2]
    p: list[float | None]  # that a random order does as well [J]; None where the curve is not compared
    p_worse: list[float | None]  # that a random order does as badly [J]
    sd: list[float]  # over the random orders [J]; empty for a single order
    cliff: int | None  # first number of removals with a mean above the cliff; None without one


class ProgressiveJson(TypedDict):
    """Curves of progressive removal."""

    cliff: float  # nats
    windows: int  # validation windows, of removal from the layer
    positions: int  # per layer, of removal at the token
    draws: int  # random orders
    modes: dict[str, str]  # what removal means, `at the token` and `from the layer`
    curves: list[CurveJson]  # layer by layer


@final
class FileAudit(AuditJson):
    """What `excise audit --positions` prints."""

    file: str  # the CSV file
    notes: list[str]  # what a reader has to know of it


class RecipeAudit(AuditJson):
    """audit.json, without its curves."""

    scope: str  # of a removal, `position` or `sequence`
    mode: str  # what removal means
    formulas: dict[str, str]  # criterion -> its score
    text: TextsJson  # what the criteria and the audit saw
    model: ModelJson  # which model was audited
    notes: list[str]  # what a reader has to know of the criteria
    run: str  # the folder of the audit


@final
class AuditResult(RecipeAudit):
    """audit.json."""

    progressive: NotRequired[ProgressiveJson]  # curves, where the recipe asks for them
