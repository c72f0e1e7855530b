"""What a criterion is: a function of statistics, and everything that reports and users are told of it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from criteria.experiment import (
    FISHER_PAIRS,
    GREEDY,
    LEARNED_MASK,
    OF_PAIRS,
    SEARCHES,
    Experiment,
    Measurement,
    Option,
)
from criteria.statistics import Statistics
from experts.arrays import Array
from experts.errors import ExciseError

Mix = tuple[tuple[str, float], ...]
Score = Callable[[Statistics], Array]

# What a criterion needs.
NOTHING = "nothing"
WEIGHTS = "weights"
TEXT = "text"
DOMAINS = "text of ≥ 2 domains"
GRADIENTS = "text, gradients"
INTERVENTIONS = "text, interventions"
ACTIVATIONS = "text, inner activations"

OBSERVED = 1.1  # plain forwards; measured by benchmarks/calibration.py, one pass for all rows together
ARXIV = "https://arxiv.org/abs/"


def arxiv(*numbers: str) -> str:
    """Return links to papers."""
    return ", ".join(ARXIV + number for number in numbers)


@dataclass(frozen=True)
class Criterion:
    """A way to rank experts.

    Attributes:
        name: what recipes call it
        score: Statistics -> scores [L, E], higher = keep; nan where an expert has no data
        formula: printed in every report
        needs: the evidence, one of the constants of this module
        cost: in plain forwards of the calibration text; of experiments, on the demo (L, E, k = 6, 16, 4)
        source: link to the paper, or what the criterion is
        grows: what the cost of an experiment is proportional to
        experiment: the settings it can have; None where observed statistics are enough
        measurement: the experiment with these settings, whose results the score reads
        part: which of the results is the score
        settings: of a criterion that is no experiment; None where it has none
        forms: of `criteria.razor.FORMS` whose sums the observing pass has to add up
        mix: (domain, weight) of the text that the score is of; empty = the text as it is
    """

    name: str
    score: Score
    formula: str
    needs: str
    cost: float
    source: str
    grows: str = ""
    experiment: Experiment | None = None
    measurement: Measurement | None = None
    part: str = ""
    settings: Experiment | None = None
    forms: tuple[str, ...] = ()
    mix: Mix = ()

    @property
    def options(self) -> Mapping[str, Option]:
        """Its settings by name."""
        owner = self.experiment or self.settings
        return owner.options if owner else {}

    @property
    def searches(self) -> bool:
        """Whether its scores are those of a search down to one budget; another budget is searched anew."""
        return self.measurement is not None and self.measurement.kind in SEARCHES

    @property
    def by_rounds(self) -> bool:
        """Whether that search measures anew in every round."""
        return self.measurement is not None and self.measurement.kind == GREEDY.kind

    @property
    def in_numbers(self) -> bool:
        """Whether that search needs numbers alone, which were measured before it begins."""
        kinds = (*OF_PAIRS, FISHER_PAIRS.kind)
        return self.measurement is not None and self.measurement.kind in kinds

    @property
    def trains(self) -> bool:
        """Whether it trains through the whole model, which then has to be in memory."""
        return self.measurement is not None and self.measurement.kind == LEARNED_MASK.kind

    @property
    def of_pairs(self) -> bool:
        """Whether it reads sums over pairs of experts, which the observing pass keeps only for such ones."""
        return self.measurement is not None and self.measurement.kind in OF_PAIRS

    def with_settings(self, settings: str) -> "Criterion":
        """Return the criterion with other settings of its experiment, written name=value,name=value.

        Raises:
            ExciseError: there is no such setting, or it cannot have that value.
        """
        assert self.experiment is not None, "only experiments have settings"
        measurement = self.experiment.measurement(self.name, settings)
        return replace(
            self,
            name=f"{self.name}:{settings}",
            score=partial(result_of, key=measurement.key, part=self.part),
            formula=f"{self.formula} ({settings})",
            measurement=measurement,
        )


def forms_of(criteria: Iterable[Criterion]) -> tuple[str, ...]:
    """Forms of razor that some of the criteria need, sorted."""
    return tuple(sorted({form for criterion in criteria for form in criterion.forms}))


def observed(name: str, score: Score, *, formula: str, source: str, needs: str = TEXT) -> Criterion:
    """A criterion of what one pass over a text shows."""
    return Criterion(name, score, formula, needs, OBSERVED, source)


def from_weights(name: str, score: Score, *, formula: str, source: str) -> Criterion:
    """A criterion that reads no text."""
    return Criterion(name, score, formula, WEIGHTS, 0.0, source)


def measured(
    name: str,
    experiment: Experiment,
    *,
    part: str,
    formula: str,
    needs: str,
    cost: float,
    source: str,
    grows: str = "",
) -> Criterion:
    """A criterion whose score is a result of an experiment, in its default settings."""
    measurement = experiment.measurement(name)
    score = partial(result_of, key=measurement.key, part=part)
    return Criterion(name, score, formula, needs, cost, source, grows, experiment, measurement, part)


def result_of(statistics: Statistics, key: str, part: str) -> Array:
    """Return one result [L, E] of an experiment that was run.

    Args:
        statistics: with the results of experiments
        key: of the measurement
        part: name of the result
    """
    if key not in statistics.measured:
        raise ExciseError(
            f"{key}: has not been measured; this criterion needs the loaded model, not only statistics"
        )
    return statistics.measured[key][part]
