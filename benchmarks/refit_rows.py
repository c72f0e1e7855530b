"""One row for every plan that was measured: what it costs in every domain, before and after the refit.

Rows are appended to a file of JSON lines as they are measured; a row that is there is not measured again.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import criteria
import experts
import finetune
from benchmarks.refit_texts import Texts
from criteria.calibration import Calibration
from criteria.text.disjoint import check_unseen
from criteria.text.windows import Windows
from experts.arrays import Array
from experts.model import Model
from experts.plan import Plan
from validate.draw import random_plans
from validate.loss import window_losses
from validate.rows import LossEvaluator
from validate.statistics import clustered_interval

Row = dict[str, Any]
ALL = "all"  # the domains together
TRAINED = ", trained"  # behind the text of a refit with local training


@dataclass(frozen=True)
class Case:
    """What a row is of.

    Attributes:
        model: demo, or a folder
        seed: of the windows that choose and refit, and of random plans
        fraction: of the experts that goes
        scope: layer or global
        chosen: names of texts joined by +; empty = of random plans
        plan: a criterion, or `random N`
        counts: experts kept in every layer, of random plans in scope global; else empty
        refitted: names of texts joined by +, and TRAINED where every layer is trained; empty = no refit
    """

    model: str
    seed: int
    fraction: float
    scope: str
    chosen: str
    plan: str
    counts: str = ""
    refitted: str = ""


class Rows:
    """The file of rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.known = {_case(row): row for row in map(json.loads, lines)}

    def add(self, case: Case, found: Row) -> None:
        """Append what was found of a case."""
        row = {**asdict(case), **found}
        self.known[case] = row
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _case(row: Mapping[str, Any]) -> Case:
    return Case(**{name: row[name] for name in Case.__dataclass_fields__})


class Bench:
    """A model with its texts, at work on cases."""

    def __init__(self, name: str, seed: int, texts: Texts, rows: Rows) -> None:
        self.name, self.seed, self.texts, self.rows = name, seed, texts, rows
        self._calibrations: dict[str, Calibration] = {}
        self._before: dict[str, Array] = {}

    @cached_property
    def model(self) -> Model:
        """Loaded when the first row is missing."""
        return experts.load(self.name, memory="resident")

    @cached_property
    def held_out(self) -> Windows:
        """Windows of all domains, as many of each."""
        return self.texts.held_out(self.model)

    @cached_property
    def clean(self) -> Array:
        """Losses of the unpruned model [N]."""
        return window_losses(self.model.network, self.held_out)

    def run(self, case: Case) -> Row:
        """Return the row of a case, measured where it is missing."""
        if case not in self.rows.known:
            plan = self._random(case) if case.plan.startswith("random ") else self._chosen(case)
            began = time.process_time()
            rises = {"before": self._rises(plan)}
            if case.refitted:
                rises["after"] = self._refitted_rises(plan, case.refitted)
            found = {when: self._by_domain(rise) for when, rise in rises.items()}
            seconds = round(time.process_time() - began, 1)
            counts = [len(plan.kept[layer]) for layer in self.model.shape.layers]
            self.rows.add(case, {"kept": counts, "cpu_seconds": seconds, **found})
        known: Row = self.rows.known[case]
        return known

    def unpruned(self) -> None:
        """The losses that all rises are over, as a row."""
        case = Case(self.name, 0, 0.0, "layer", "", "unpruned")
        if case not in self.rows.known:
            losses = {name: found[0] for name, found in self._by_domain(self.clean).items()}
            self.rows.add(case, {"loss": losses})

    def _chosen(self, case: Case) -> Plan:
        text = self.texts.calibration(case.chosen, self.model, self.seed)
        check_unseen(text.tokens, self.held_out, "calibration", "for the test")
        calibration = self._calibrations.setdefault(case.chosen, Calibration(self.model, text))
        scope: Any = case.scope
        budget = criteria.budget_for(self.model, fraction=case.fraction, scope=scope)
        scores = calibration.scores([criteria_named(case.plan)], budget)[0]
        return criteria.select(scores, budget=budget)

    def _random(self, case: Case) -> Plan:
        shape = self.model.shape
        even = round(shape.num_experts * (1 - case.fraction))
        counts = [int(one) for one in case.counts.split(",")] if case.counts else [even] * shape.num_layers
        kept = {layer: tuple(range(count)) for layer, count in zip(shape.layers, counts, strict=True)}
        free = np.zeros((shape.num_layers, shape.num_experts), dtype=bool)
        number = int(case.plan.split()[1])
        return random_plans(Plan(shape.num_experts, kept), shape, free, number + 1, case.seed)[number]

    def _rises(self, plan: Plan) -> Array:
        if plan.digest not in self._before:
            clean = self.clean  # measured before anything is removed
            with experts.restricted(self.model, plan):
                self._before[plan.digest] = window_losses(self.model.network, self.held_out) - clean
        return self._before[plan.digest]

    def _refitted_rises(self, plan: Plan, names: str) -> Array:
        text = self.texts.calibration(names.removesuffix(TRAINED), self.model, self.seed)
        check_unseen(text.tokens, self.held_out, "the refit", "for the test")
        clean, local = self.clean, finetune.Local() if names.endswith(TRAINED) else None
        with finetune.refitted(self.model, finetune.refit_experts(self.model, plan, text, local=local)):
            return window_losses(self.model.network, self.held_out) - clean

    def _by_domain(self, rises: Array) -> dict[str, list[float]]:
        """Mean, and its 95 % interval, in every domain and in all of them."""
        weights, names = LossEvaluator(self.held_out).weights, self.held_out.domains
        groups = {**{name: [name] for name in names}, ALL: list(names)}
        found = {}
        for group, members in groups.items():
            own = np.isin(self.held_out.domain, [names.index(name) for name in members])
            interval = clustered_interval(rises[own], weights[own], self.held_out.document[own], 0)
            mean = float(np.average(rises[own], weights=weights[own]))
            found[group] = [round(value, 4) for value in (mean, interval.low, interval.high)]
        return found


def criteria_named(name: str) -> Any:
    """The criterion of a name with its settings."""
    from criteria.by_name import resolve

    return resolve(name)


def randoms_of(case: Case, row: Row, count: int) -> list[Case]:
    """Random plans of the counts of a measured plan, with the same refit."""
    counts = ",".join(map(str, row["kept"])) if case.scope == "global" else ""
    return [replace(case, chosen="", plan=f"random {n}", counts=counts) for n in range(count)]
