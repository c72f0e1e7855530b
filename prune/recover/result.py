"""The content of recovery.json, which `excise finetune --json` prints."""

from typing import TypedDict

from criteria.text.windows import TextJson
from finetune.results import TrainingJson
from prune.results import ModelJson
from validate.results import LeadJson, RecoveredCostJson


class CurvePointJson(TypedDict):
    """Held-out loss of a plan during its training."""

    step: float  # optimiser steps done
    tokens: float  # training tokens seen
    seconds: float  # of training
    held_out: float  # mean loss on the validation text, nats per token
    delta: float  # its rise over the unpruned model's
    share: float | None  # of the loss before training that came back; None where nothing was lost


class RecoveredPlanJson(TypedDict):
    """One plan before and after recovery."""

    name: str  # `criterion`, `random-0`, … or `unpruned`
    plan: str  # which criterion made it
    digest: str  # identity of the kept experts
    measures: list[RecoveredCostJson]  # cost before and after, the held-out loss first, then tasks
    curve: list[CurvePointJson]  # during training


class RecoverySummary(TypedDict):
    """The measured part of recovery.json."""

    criterion: str  # whose plan is written
    budget: str  # of all plans
    fraction: float  # share of the experts that was removed
    loss: float  # of the unpruned model, nats per token
    full: dict[str, float]  # measure -> value of the unpruned model
    plans: list[RecoveredPlanJson]  # the criterion's first
    leads: list[LeadJson]  # over random plans, one a measure; empty where none was recovered
    rule: str  # how a verdict on a lead comes about


class PlacesJson(TypedDict):
    """Where things are; a folder may have been moved since they were made."""

    run: str  # the run folder
    checkpoint: str  # folder of the recovered checkpoint
    adapter: str  # folder of its adapter


class RecoveryResult(RecoverySummary, PlacesJson):
    """recovery.json."""

    training: TrainingJson  # the same for all plans
    text: TextJson  # validation windows
    model: ModelJson  # the unpruned model
