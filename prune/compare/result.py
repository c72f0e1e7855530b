"""The content of comparison.json, which `excise compare --json` prints."""

from typing import TypedDict

from prune.results import Check, Difference, Evidence, ModelIdentity, Texts


class Overlap(TypedDict):
    """How alike the criteria's plans are at one budget.

    Attributes:
        scope: `layer` or `global`.
        fraction: share of the experts that is removed.
        criteria: rows and columns of the matrix.
        matrix: overlap beyond chance; 1 = as alike as the counts allow, 0 = as random plans.
    """

    scope: str
    fraction: float
    criteria: list[str]
    matrix: list[list[float | None]]


class StabilityRow(TypedDict):
    """How alike one criterion's plans are between calibration seeds.

    Attributes:
        criterion: its name.
        scope: `layer` or `global`.
        fraction: share of the experts that is removed.
        seeds: plans that were compared.
        mean: of the overlaps beyond chance of all pairs of seeds; None where it was not repeated.
        smallest: of the same overlaps.
    """

    criterion: str
    scope: str
    fraction: float
    seeds: int
    mean: float | None
    smallest: float | None


class Stability(TypedDict):
    """The stability of all criteria, and of the text they were calibrated on.

    Attributes:
        windows_shared_by_seeds: mean share of the first seed's windows that the others drew too; None with one seed.
        stability: a row per criterion and budget.
    """

    windows_shared_by_seeds: float | None
    stability: list[StabilityRow]


class Agreement(TypedDict):
    """Rank agreement with the measured removals.

    Attributes:
        reference: the criterion that measures them; None where the recipe has none.
        layers: decoder layers [L].
        spearman: criterion -> Spearman over the experts of a layer [L].
    """

    reference: str | None
    layers: list[int]
    spearman: dict[str, list[float | None]]


class Task(TypedDict):
    """An lm-eval task on the unpruned model.

    Attributes:
        name: the task's.
        metric: what is reported, for example acc.
        items: how many.
        full: value of the unpruned model.
    """

    name: str
    metric: str
    items: int
    full: float


class ComparisonResult(Stability):
    """comparison.json.

    Attributes:
        overlap: of the criteria's plans, one matrix per budget.
        agreement: with the measured removals.
        plans: every criterion at every budget, against random plans.
        pairs: every two criteria at the same budget, against each other.
        scopes: global against layer, of the same criterion and total.
        rule: how a verdict comes about.
        pair_rule: when two criteria differ.
        chance: how p comes about, `counted` or `normal`.
        seed: of the random plans and of the bootstrap.
        loss: of the unpruned model, nats per token.
        tasks: of the recipe.
        text: what the criteria and the tests saw.
        model: which model was pruned.
        checks: of the instrument, all passed.
        notes: what a reader has to know of the budgets.
        run: the folder of the comparison.
    """

    overlap: list[Overlap]
    agreement: Agreement
    plans: list[Evidence]
    pairs: list[Difference]
    scopes: list[Difference]
    rule: str
    pair_rule: str
    chance: str
    seed: int
    loss: float
    tasks: list[Task]
    text: Texts
    model: ModelIdentity
    checks: list[Check]
    notes: list[str]
    run: str
