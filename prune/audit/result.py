"""The content of audit.json, which `excise audit --json` prints."""

from typing import NotRequired, TypedDict, final

from prune.results import Cell, ModelIdentity, Texts

# Cells of criteria, without controls: "cells" pass by the rule (Bonferroni), of "of"; "cells_holm" and
# "cells_benjamini-hochberg" pass by the other corrections.
Passing = dict[str, int]


class Cells(TypedDict):
    """Every cell (criterion, layer) with its verdict.

    Attributes:
        rule: when a cell passes.
        ddof: degrees of freedom taken off in the standard deviation of d.
        alpha: before correction.
        passing: outcome -> how many cells pass.
        cells: by the signed ΔCE, criteria first, then controls.
        outcomes: the other outcomes -> their cells.
    """

    rule: str
    ddof: int
    alpha: float
    passing: dict[str, Passing]
    cells: list[Cell]
    outcomes: dict[str, list[Cell]]


class CurveResult(TypedDict):
    """One curve of progressive removal, J points.

    Attributes:
        layer: decoder layer.
        order: which expert goes first: a criterion, its reverse, gate weight or chance.
        mean: ΔCE after 1, 2, … removals, nats [J].
        interval: its 95 % interval over documents [J, 2].
        p: that a random order does as well [J]; None where the curve is not compared.
        p_worse: that a random order does as badly [J].
        sd: over the random orders [J]; empty for a single order.
        cliff: first number of removals with a mean above the cliff; None without one.
    """

    layer: int
    order: str
    mean: list[float]
    interval: list[list[float | None]]
    p: list[float | None]
    p_worse: list[float | None]
    sd: list[float]
    cliff: int | None


class ProgressiveResult(TypedDict):
    """Curves of progressive removal.

    Attributes:
        cliff: nats.
        windows: validation windows, of removal from the layer.
        positions: per layer, of removal at the token.
        draws: random orders.
        modes: what removal means, `at the token` and `from the layer`.
        curves: layer by layer.
    """

    cliff: float
    windows: int
    positions: int
    draws: int
    modes: dict[str, str]
    curves: list[CurveResult]


@final
class FileAudit(Cells):
    """What `excise audit --positions` prints.

    Attributes:
        file: the CSV file.
        notes: what a reader has to know of it.
    """

    file: str
    notes: list[str]


class RecipeAudit(Cells):
    """audit.json, without its curves.

    Attributes:
        scope: of a removal, `position` or `sequence`.
        mode: what removal means.
        formulas: criterion -> its score.
        text: what the criteria and the audit saw.
        model: which model was audited.
        notes: what a reader has to know of the criteria.
        run: the folder of the audit.
    """

    scope: str
    mode: str
    formulas: dict[str, str]
    text: Texts
    model: ModelIdentity
    notes: list[str]
    run: str


@final
class AuditResult(RecipeAudit):
    """audit.json.

    Attributes:
        progressive: curves, where the recipe asks for them.
    """

    progressive: NotRequired[ProgressiveResult]
