"""The content of comparison.json, which `excise compare --json` prints."""

from typing import TypedDict

from prune.results import AllocationJson, ModelJson, TextsJson
from validate.results import CheckJson, DifferenceJson, EvidenceJson


class OverlapJson(TypedDict):
    """How alike the criteria's plans are at one budget."""

    scope: str  # `layer` or `global`
    fraction: float  # share of the experts that is removed
    criteria: list[str]  # rows and columns of the matrix
    matrix: list[list[float | None]]  # beyond chance: 1 = as alike as the counts allow, 0 = as random plans


class StabilityJson(TypedDict):
    """How alike one criterion's plans are between calibration seeds."""

    criterion: str  # its name
    scope: str  # `layer` or `global`
    fraction: float  # share of the experts that is removed
    seeds: int  # plans that were compared
    mean: float | None  # overlap beyond chance of all pairs of seeds; None where nothing was repeated
    smallest: float | None  # of these overlaps


class StabilitiesJson(TypedDict):
    """The stability of all criteria, and of the text they were calibrated on."""

    windows_shared_by_seeds: float | None  # mean share of the first seed's windows; None with one seed
    stability: list[StabilityJson]  # a row per criterion and budget


class AgreementJson(TypedDict):
    """Rank agreement with the measured removals."""

    reference: str | None  # the criterion that measures them; None where the recipe has none
    layers: list[int]  # decoder layers [L]
    spearman: dict[str, list[float | None]]  # criterion -> Spearman over the experts of a layer [L]


class TaskJson(TypedDict):
    """An lm-eval task on the unpruned model."""

    name: str  # the task's
    metric: str  # what is reported, for example acc
    items: int  # how many
    full: float  # value of the unpruned model


class DifferencesJson(TypedDict):
    """Plans against each other."""

    pairs: list[DifferenceJson]  # every two criteria at the same budget, against each other
    scopes: list[DifferenceJson]  # global against layer, of the same criterion and total


class ComparisonResult(StabilitiesJson, DifferencesJson):
    """comparison.json."""

    overlap: list[OverlapJson]  # of the criteria's plans, one matrix per budget
    agreement: AgreementJson  # with the measured removals
    allocations: list[AllocationJson]  # counts per layer by what a refit leaves; empty where scores decide
    plans: list[EvidenceJson]  # every criterion at every budget, against random plans
    refit: DifferencesJson | None  # the same after the refit, where rankings may change
    rule: str  # how a verdict comes about
    pair_rule: str  # when two criteria differ
    chance: str  # how p comes about, `counted` or `normal`
    seed: int  # of the random plans and of the bootstrap
    loss: float  # of the unpruned model, nats per token
    tasks: list[TaskJson]  # of the recipe
    text: TextsJson  # what the criteria and the tests saw
    model: ModelJson  # which model was pruned
    checks: list[CheckJson]  # of the instrument, all passed
    notes: list[str]  # what a reader has to know of the budgets
    run: str  # the folder of the comparison
