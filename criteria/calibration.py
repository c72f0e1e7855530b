"""A model on a calibration text: statistics, experiments and scores, each made once."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from criteria.budget import Budget
from criteria.criterion import Criterion, forms_of
from criteria.experiment import SEARCHES, Measurement, prerequisites
from criteria.experiment_context import ExperimentContext
from criteria.greedy import VERSION
from criteria.measure import measure
from criteria.mixture import check_compares, check_domains, mix_of, with_mix
from criteria.observe import observe
from criteria.protection import Protection, protects, super_experts
from criteria.scores import Scores, score
from criteria.statistics import Statistics
from criteria.text.windows import Windows
from experts.arrays import Array, Marks
from experts.cache import Cache
from experts.errors import ExciseError
from experts.keys import key_of
from experts.model import Model
from experts.shape import Shape
from experts.stored_arrays import StoredArrays


@dataclass(frozen=True)
class Storage:
    """Where results outlive the process.

    Attributes:
        cache: finished results, for all runs
        folder: unfinished ones, of this run
    """

    cache: Cache
    folder: Path


class Calibration:
    """What is known of a model's experts from one text.

    Args:
        model: loaded when a result is missing
        windows: calibration text
        batch: windows per forward; changes memory and speed only
        protect: keep experts with outlier activations in every plan; auto = in models of 200 experts and more
        storage: where results are kept; None = in memory
        forms: of razor that the pass over the text adds up (`criteria.criterion.forms_of`); those of a
            criterion that is scored later cost a second pass
        mix: domain -> weight: observed criteria are of that mixture, without another pass; None = the text
            as it is
        pairs: sum over pairs of experts in the first pass; otherwise they take another one when asked for
    """

    def __init__(
        self,
        model: Model,
        windows: Windows,
        *,
        batch: int = 8,
        protect: Protection = "auto",
        storage: Storage | None = None,
        forms: tuple[str, ...] = (),
        mix: Mapping[str, float] | None = None,
        pairs: bool = False,
    ) -> None:
        self.model, self.windows, self.batch, self.protect = model, windows, batch, protect
        self.storage, self.forms, self.pairs = storage, forms, pairs
        self.mix = mix_of(mix) if mix else ()
        self._observed: Statistics | None = None

    @property
    def observed(self) -> Statistics:
        """Statistics of one pass over the text: kept ones, an interrupted pass taken up, or a new one."""
        if self._observed is None or not self._has_all(self._observed):
            if self.storage is None:
                self._observed = observe(
                    self.model.anatomy, self.windows, self.batch, None, None, self.forms, self.pairs
                )
            else:
                self._observed = self._stored_observation(self.storage)
        return self._observed

    def _has_all(self, statistics: Statistics) -> bool:
        """Whether statistics hold every sum that is asked for by now."""
        pairs = bool(statistics.pair_norms.size) or not self.pairs
        return pairs and statistics.replacement.keys() >= set(self.forms)

    def _observed_for(self, criteria: Sequence[Criterion]) -> Statistics:
        """Statistics with everything that these criteria and the earlier ones need."""
        self.forms = tuple(sorted({*self.forms, *forms_of(criteria)}))
        self.pairs = self.pairs or any(row.of_pairs for row in criteria)
        return self.observed

    def _stored_observation(self, storage: Storage) -> Statistics:
        text = (self.windows.hash, self.windows.domains)
        more = [*self.forms, *(["pairs"] if self.pairs else [])]
        key = key_of("statistics", self.model.identity, *text, *more)
        provenance = {"key": key, "model": self.model.fingerprint, "data": self.windows.hash}
        name, partial = f"{key}.safetensors", storage.folder / "calibration.partial.safetensors"

        def usable(path: Path) -> Statistics | None:
            with suppress(ExciseError):  # not there, damaged or another user's: measured
                statistics, metadata = Statistics.read(path)
                return statistics if metadata.get("key") == key else None
            return None

        if kept := storage.cache.read(name, usable):
            return kept
        statistics = observe(
            self.model.anatomy,
            self.windows,
            self.batch,
            usable(partial),
            lambda so_far: so_far.save(partial, provenance),
            self.forms,
            self.pairs,
        )
        storage.cache.write(name, lambda path: statistics.save(path, provenance))
        partial.unlink(missing_ok=True)
        return statistics

    @cached_property
    def protected(self) -> Marks:
        """Experts that are never pruned [L, E]."""
        shape = self.model.shape
        if not protects(self.protect, shape.total):
            return np.zeros((shape.num_layers, shape.num_experts), dtype=bool)
        return super_experts(self.observed)

    def scores(self, criteria: Sequence[Criterion], budget: Budget | None = None) -> list[Scores]:
        """Return the scores of several criteria, whose experiments are run once.

        Args:
            criteria: rows of the registry (`criteria.by_name.resolve`)
            budget: what a search prunes down to; needed by criteria that search
        """
        criteria = [with_mix(row, self.mix) for row in criteria] if self.mix else criteria
        statistics = self.measured(criteria, budget)
        model, data = self.model.fingerprint, self.windows.hash
        layers = self.model.shape.layers
        rankings = [score(row, statistics, layers, self.protected, model, data) for row in criteria]
        return [
            replace(
                scores,
                layout=self.model.layout,
                text=self.windows,
                searched=budget if row.searches else None,
            )
            for row, scores in zip(criteria, rankings, strict=True)
        ]

    def measured(self, criteria: Sequence[Criterion], budget: Budget | None = None) -> Statistics:
        """Return the statistics with the results of every experiment that the criteria need."""
        for row in criteria:
            check_domains(row.mix, self.windows.domains)
            check_compares(row, self.windows.domains)
        asked = list(dict.fromkeys(row.measurement for row in criteria if row.measurement))
        first = [needed for measurement in asked for needed in prerequisites(measurement)]
        statistics = self._observed_for(criteria)
        for measurement in dict.fromkeys([*first, *asked]):
            results = self._results(measurement, statistics, budget)
            statistics = replace(statistics, measured={**statistics.measured, measurement.key: results})
        return statistics

    def _results(
        self, measurement: Measurement, statistics: Statistics, budget: Budget | None
    ) -> dict[str, Array]:
        """One experiment's results: kept, taken up where it was interrupted, or new."""
        if measurement.kind in SEARCHES and budget is None:
            raise ExciseError(
                f"{measurement.kind}: a search needs the budget it prunes down to; "
                "give budget=criteria.budget_for(model, fraction=…)"
            )
        if self.storage is None:
            return measure(measurement, self._context(statistics, budget, StoredArrays()))
        key = self._key(measurement, budget)
        name = f"{key}.safetensors"
        if kept := self.storage.cache.read(name, lambda path: StoredArrays(path, key).read() or None):
            return kept
        partial = StoredArrays(self.storage.folder / "experiment.partial.safetensors", key)
        results = measure(measurement, self._context(statistics, budget, partial))
        self.storage.cache.write(name, lambda path: StoredArrays(path, key).write(results))
        partial.clear()
        return results

    def _key(self, measurement: Measurement, budget: Budget | None) -> str:
        """Identity of an experiment's results; a search depends on where it ends, too."""
        bound: tuple[object, ...] = ()
        if measurement.kind in SEARCHES and budget is not None:
            protected = self.protected.tobytes().hex()
            counts = (budget.total, budget.scope, budget.floor, budget.counts, budget.multiple)
            bound = (VERSION, *counts, protected)
        return key_of("measured", self.model.identity, self.windows.hash, measurement.key, *bound)

    def _context(
        self, statistics: Statistics, budget: Budget | None, partial: StoredArrays
    ) -> ExperimentContext:
        shape = self.model.shape
        return ExperimentContext(
            anatomy=self.model.anatomy,
            windows=self.windows,
            batch=self.batch,
            statistics=statistics,
            shape=shape,
            budget=budget or _everything(shape),
            protected=self.protected,
            partial=partial,
        )


def _everything(shape: Shape) -> Budget:
    """For experiments that search for nothing."""
    return Budget(shape.total, "layer", shape.smallest, "all experts")
