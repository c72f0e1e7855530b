"""Experiments: work on the loaded model that a criterion's scores are read from.

What can be asked is here, without torch; how it is done is in the modules that criteria/measure.py names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experts.errors import ExciseError

Value = int | str
LEAVE_ONE_OUT = "causal_removal"  # the criterion that removes every expert alone


@dataclass(frozen=True)
class Option:
    """One setting of an experiment, written name=value in recipes.

    Attributes:
        default: its type is the setting's type
        help: what the setting means
        choices: the only values of a text; none = any
        least: the smallest number that means something
    """

    default: Value
    help: str
    choices: tuple[str, ...] = ()
    least: int = 0

    def parse(self, where: str, text: str) -> Value:
        """Return the value that a text stands for.

        Args:
            where: what the setting is called in messages
            text: as written in the recipe

        Raises:
            ExciseError: the text is no such value.
        """
        if isinstance(self.default, int):
            return self._number(where, text)
        if self.choices and text not in self.choices:
            raise ExciseError(f"{where}: expected one of {', '.join(self.choices)}, got {text!r}")
        return text

    def _number(self, where: str, text: str) -> int:
        if not (text.isascii() and text.removeprefix("-").isdigit()):
            raise ExciseError(f"{where}: expected a whole number, got {text!r}")
        if int(text) < self.least:
            raise ExciseError(f"{where} is {text}; it has to be at least {self.least} ({self.help})")
        return int(text)


@dataclass(frozen=True)
class Measurement:
    """An experiment with all its settings. Criteria that need the same one share its results.

    Attributes:
        kind: which experiment
        settings: (name, value) of every setting, in the experiment's order
    """

    kind: str
    settings: tuple[tuple[str, Value], ...]

    @property
    def key(self) -> str:
        """Identity, for example removal:mode=reroute,windows=0."""
        return f"{self.kind}:{','.join(f'{name}={value}' for name, value in self.settings)}"

    @property
    def values(self) -> dict[str, Any]:
        """The settings by name."""
        return dict(self.settings)


@dataclass(frozen=True)
class Experiment:
    """What can be measured.

    Attributes:
        kind: its row in criteria/measure.py
        options: its settings by name
    """

    kind: str
    options: Mapping[str, Option]

    def measurement(self, criterion: str, settings: str = "") -> Measurement:
        """Return the experiment with some settings; the others have their defaults.

        Args:
            criterion: who asks, for messages
            settings: name=value,name=value

        Raises:
            ExciseError: there is no such setting, or it cannot have that value.
        """
        values = {name: option.default for name, option in self.options.items()}
        given = set[str]()
        for setting in filter(None, settings.split(",")):
            name, equals, text = setting.partition("=")
            if name not in self.options or not equals:
                known = "; ".join(f"{name}=… {option.help}" for name, option in self.options.items())
                raise ExciseError(f"criterion {criterion!r}: no setting {setting!r}; it has {known}")
            if name in given:
                raise ExciseError(f"criterion {criterion!r}: {name} is given twice in {settings!r}")
            given.add(name)
            values[name] = self.options[name].parse(f"criterion {criterion!r}: {name}", text)
        return Measurement(self.kind, tuple(values.items()))


def _mode(default: str) -> Option:
    """What removal means: `experts.modes.Mode` without mean, which needs a text of its own."""
    return Option(
        default,
        "what removal means: zero, renormalize or reroute",
        choices=("zero", "renormalize", "reroute"),
    )


WINDOWS = Option(0, "calibration windows used, evenly spread; 0 = all")
OUTCOME = Option(
    "loss",
    "what is measured: loss = ΔCE, kl = KL(unpruned ‖ pruned)",
    choices=("loss", "kl"),
)
STEP = Option(
    1,
    "experts removed per round: of every layer in scope layer, of the whole model in scope global",
    least=1,
)
ROUNDS = Option(
    0,
    "rounds to the (smallest) budget, instead of step; 0 = as many as step needs",
)
SHORTLIST = Option(
    0,
    "candidates measured per round, likewise, those with the lowest last estimates; 0 = all",
)
START = Option(LEAVE_ONE_OUT, "criterion that gives the first estimates")
PROBES = Option(4, "random-sign probes", least=1)
TOKENS = Option(4096, "tokens used, evenly spread; 0 = all")
REROUTED = Option(
    0,
    "candidates per removal that are routed again and solved anew; 0 = features of the unpruned routing",
)
OF = Option("reap_sum", "observed criterion whose scores are the mass that is covered")
ROUNDS_OF_WEIGHTS = Option(50, "rounds without a gain until the search ends", least=1)
STEPS = Option(8, "points between α = 1 and α = 0", least=1)

POSITION = Experiment("position", {"mode": _mode("zero"), "windows": WINDOWS})
REMOVAL = Experiment("removal", {"mode": _mode("reroute"), "outcome": OUTCOME, "windows": WINDOWS})
GREEDY = Experiment(
    "greedy",
    {
        "step": STEP,
        "rounds": ROUNDS,
        "shortlist": SHORTLIST,
        "outcome": OUTCOME,
        "start": START,
        "windows": WINDOWS,
    },
)
GRADIENT = Experiment("gradient", {"windows": WINDOWS})
FISHER = Experiment("fisher", {"probes": PROBES, "windows": WINDOWS})
REFIT_RESIDUAL = Experiment("refit_residual", {"tokens": TOKENS, "rerouted": REROUTED, "windows": WINDOWS})
INTEGRATED = Experiment("integrated", {"steps": STEPS, "windows": WINDOWS})
MEAN = Option(
    "both",
    "tokens a pair is averaged over: both = those routed to both experts, all = all tokens",
    choices=("both", "all"),
)
UNITS = Option(
    "stream",
    "how layers are added up in scope global: stream = as they are, relative = each divided by its whole",
    choices=("stream", "relative"),
)
HOPE = Experiment("hope", {"mean": MEAN, "units": UNITS})
GRAM = Experiment("gram", {"units": UNITS})
DRAWS = Option(1, "labels drawn from the model per token", least=1)
FISHER_PAIRS = Experiment("fisher_pairs", {"draws": DRAWS, "windows": WINDOWS})
PAIR_SLOPES = Experiment("pair_slopes", {"draws": DRAWS, "windows": WINDOWS})  # what it begins with
OUTPUT_TOKENS = Option(4096, "calibration tokens used, evenly spread; 0 = all")
RECON = Experiment("recon", {"tokens": OUTPUT_TOKENS, "windows": WINDOWS})
UPDATES = Option(100, "steps of training at most", least=1)
PATIENCE = Option(5, "checks (every 10 steps) without a lower KL after which training ends", least=1)
FIRST = Option("reap_sum", "criterion of observed statistics that training begins with")
LEARNED_MASK = Experiment(
    "learned_mask", {"updates": UPDATES, "patience": PATIENCE, "start": FIRST, "windows": WINDOWS}
)
BEGUN_WITH = Option("reap_sum", "criterion of observed statistics whose plan is changed")
SWAPPED = Option(
    16, "swaps measured per pass: of every layer in scope layer, of the whole model in scope global", least=1
)
PASSES = Option(4, "passes over the layers at most", least=1)
SWAPS = Experiment(
    "causal_swaps",
    {"start": BEGUN_WITH, "shortlist": SWAPPED, "passes": PASSES, "windows": WINDOWS},
)

MAX_MIN = Experiment("max_min", {"of": OF, "patience": ROUNDS_OF_WEIGHTS})

OF_PAIRS = (HOPE.kind, GRAM.kind)  # they read sums over pairs, which the observing pass keeps for them alone
SEARCHES = (
    GREEDY.kind,
    FISHER_PAIRS.kind,
    RECON.kind,
    LEARNED_MASK.kind,
    SWAPS.kind,
    MAX_MIN.kind,
    *OF_PAIRS,
)  # their results belong to one budget


def leave_one_out(outcome: str, windows: int) -> Measurement:
    """Return the removal of every expert alone, in the mode that pruning means."""
    return REMOVAL.measurement(LEAVE_ONE_OUT, f"outcome={outcome},windows={windows}")


def pair_slopes(draws: int, windows: int) -> Measurement:
    """Return the products of slopes, which serve every budget of `fisher_pairs`."""
    return PAIR_SLOPES.measurement("fisher_pairs", f"draws={draws},windows={windows}")


def prerequisites(measurement: Measurement) -> tuple[Measurement, ...]:
    """Return the experiments whose results another one begins with: they are kept and shared on their own."""
    values = measurement.values
    if measurement.kind == GREEDY.kind and values["start"] == LEAVE_ONE_OUT:
        return (leave_one_out(values["outcome"], values["windows"]),)
    if measurement.kind == FISHER_PAIRS.kind:
        return (pair_slopes(values["draws"], values["windows"]),)
    return ()
