"""What results look like in JSON files: a type per object, a comment per key.

Costs and differences are in nats per token for the loss, and in share of items for tasks; smaller is better.
None stands for nan: the statistic does not exist, and a note or reason beside it says why.
"""

from typing import TypedDict

from validate.verdict import Survival, Verdict

Ends = list[float | None]  # [low, high] of a 95 % interval


class RandomPlansJson(TypedDict):
    """What the random plans cost."""

    values: list[float]  # cost of each random plan over the unpruned model [R]
    digests: list[str]  # which plans they are, in the same order [R]
    mean: float  # of the values
    sd: float  # of the values, ddof 1
    normality_p: float | None  # Shapiro-Wilk p that the values are normal


class JudgedJson(TypedDict):
    """A plan against random plans, with its verdict."""

    random: RandomPlansJson
    p: float | None  # one-sided, that chance does as well
    p_worse: float | None  # one-sided, that chance does as badly
    p_corrected: float | None  # p over the family of tests that the report names
    p_worse_corrected: float | None  # p_worse over the same family
    effect: float | None  # advantage over the mean random plan, in sd of the random plans
    interval: Ends  # of the advantage, mean random cost − the plan's
    clusters: int  # documents, or items, that the interval resamples
    interval_note: str  # why there is no interval, else empty
    smallest_detectable: float | None  # advantage that is found with 80 % power; None: nothing could be
    verdict: Verdict


class PlanCostJson(JudgedJson):
    """What a plan costs by one measure, against the unpruned model, its reverse and random plans."""

    delta: float  # mean rise over the unpruned model
    delta_interval: Ends  # of delta, over documents or items
    p_full: float | None  # two-sided, that the plan is as good as the unpruned model
    reversed_delta: float | None  # delta of the reverse plan; None where there is none
    ends_interval: Ends  # of (reversed cost − the plan's cost)
    ends_alike: bool  # whether that interval holds 0
    equal_counts: JudgedJson | None  # against random plans of equal counts; None where the plan's are equal


class CostJson(PlanCostJson):
    """The same with the name of the measure and its plain values."""

    name: str  # "loss", the task, or the domain
    metric: str  # "nats per token", or the task's metric
    full: float  # value of the unpruned model, in the metric's own direction
    value: float  # value of the plan, in the metric's own direction


class RefittedJson(PlanCostJson):
    """A plan after its refit, against random plans after theirs; the loss in the keys of `PlanCostJson`."""

    gain: float  # cost before − after, by the loss
    gain_interval: Ends  # of the gain, over documents
    share: float | None  # of the cost, that the refit took back
    share_interval: Ends  # of the share
    survival: Survival  # of the lead over random plans
    conclusion: str  # the verdict after the refit in a sentence, with the worst domain
    domains: list[CostJson]  # after the refit, worst first; empty where there is one
    tasks: list[CostJson]


class EvidenceJson(PlanCostJson):
    """A criterion's plan by every measure: the loss in the keys of `PlanCostJson`, the rest in lists."""

    criterion: str
    formula: str
    scope: str  # "layer" or "global"
    fraction: float  # share of all experts that is pruned
    kept: int  # experts that are kept, over all layers
    of: int  # experts of the unpruned model, over all layers
    kept_per_layer: dict[str, int]  # by decoder layer index
    digest: str  # of the plan
    reversed_digest: str | None  # of the reverse plan; None where there is none
    conclusion: str  # the verdict in a sentence, with the worst domain and those where it does not hold
    domains: list[CostJson]  # by the loss in each domain of the text, worst first; empty where there is one
    tasks: list[CostJson]
    refit: RefittedJson | None  # the same plan after its refit; None where the recipe has none


class DifferenceJson(TypedDict):
    """Two criteria at one budget, by one measure."""

    name: str  # "loss", or the task
    scope: str  # "layer", "global", or "global − layer" where scopes are compared
    fraction: float  # share of all experts that is pruned
    first: str  # criterion
    second: str  # criterion
    difference: float  # cost of first − cost of second
    low: float | None  # of the 95 % interval of the difference
    high: float | None  # of the 95 % interval of the difference
    p: float | None  # two-sided
    test: str  # which test made p
    same_plan: bool  # whether both keep the same experts
    reason: str  # why there is no p, else empty
    p_corrected: float | None  # after Holm over all pairs by this measure
    differ: bool  # whether p_corrected ≤ 0.05


class CellJson(TypedDict):
    """One (criterion, layer) of a token-level audit. Outcomes are in nats."""

    layer: int  # decoder layer index
    criterion: str  # or a control
    n: int  # positions
    mean_high: float | None  # mean outcome of removing the high-ranked expert
    mean_low: float | None  # mean outcome of removing the low-ranked expert
    d: float | None  # Cohen's d of the paired differences
    d_low: float | None  # of the 95 % interval of d
    d_high: float | None  # of the 95 % interval of d
    p_t: float | None  # paired t-test, two-sided, not corrected
    p_wilcoxon: float | None  # signed rank test, two-sided, not corrected
    p_clustered: float | None  # sign flips over documents, two-sided, not corrected
    low: float | None  # of the 95 % interval of the mean difference, over documents
    high: float | None  # of the 95 % interval of the mean difference, over documents
    documents: int | None  # how many; None where the rows do not name them
    share_high_larger: float  # share of positions where the high-ranked expert's removal costs more
    reason: str  # why a test is missing or cannot pass, else empty
    smallest_detectable_d: float | None  # found with 80 % power at `alpha`
    needed_n: int | None  # positions that the t-test needs for the d that was seen
    alpha: float  # 0.05 / cells of the family
    passes: bool  # by AUDIT_RULE
    inverted: bool  # significant, and the high-ranked expert's removal costs less
    passes_by: dict[str, bool]  # the same rule under each correction
    spearman: float | None  # mean over positions of ρ(score, effect) inside the active set


PassingJson = TypedDict(
    "PassingJson",
    {
        "cells": int,  # cells of criteria that pass, controls left out
        "of": int,  # cells of criteria
        "cells_holm": int,  # that pass under Holm
        "cells_benjamini-hochberg": int,  # that pass under Benjamini-Hochberg
    },
)


class AuditJson(TypedDict):
    """The cells of a token-level audit by every outcome."""

    rule: str  # in words
    ddof: int  # of the standard deviation in d
    alpha: float  # before correction
    passing: dict[str, PassingJson]  # by outcome: "delta", "absolute", "kl"
    cells: list[CellJson]  # of the outcome "delta"
    outcomes: dict[str, list[CellJson]]  # of the other outcomes


class CurveJson(TypedDict):
    """A curve of progressive removal: ΔCE in nats after 1, 2, …, J removals in one layer."""

    layer: int  # decoder layer index
    order: str  # what is removed first: a criterion, its reverse, random, or the gate weight
    mean: list[float]  # mean ΔCE [J]
    interval: list[Ends]  # of the mean, over documents [J]
    p: list[float | None]  # one-sided, that random orders do as well [J]; None: not compared
    p_worse: list[float | None]  # one-sided, that random orders do as badly [J]; None: not compared
    sd: list[float]  # over orders, where the curve is the mean of several [J], else empty
    cliff: int | None  # the first number of removals with a mean above 0.1 nats


class RecoveredCostJson(TypedDict):
    """What recovery did to one plan by one measure."""

    name: str  # "loss", or the task
    metric: str
    before: float  # cost over the unpruned model before recovery
    after: float  # the same after recovery
    gain: float  # before − after
    gain_interval: Ends  # of the gain
    share: float | None  # of the cost, that recovery took back
    share_interval: Ends  # of the share
    share_note: str  # why there is no share, else empty


class LeadJson(TypedDict):
    """The criterion's lead over random plans by one measure, before and after recovery."""

    name: str  # "loss", or the task
    metric: str
    verdict: Survival
    lead_before: float  # mean cost of the recovered random plans − the criterion's, before recovery
    interval_before: Ends  # of lead_before
    lead_after: float  # the same after recovery
    interval_after: Ends  # of lead_after
    kept: float | None  # lead_after / lead_before
    kept_interval: Ends  # of kept
    kept_note: str  # why there is no such share, else empty
    before: JudgedJson  # against all random plans that were measured before recovery
    after: JudgedJson  # against the recovered random plans


class CheckJson(TypedDict):
    """One check of the instrument."""

    name: str  # its number and what must hold
    passed: bool
    evidence: str  # the numbers
