"""An experiment is work on the loaded model that a criterion's scores are read from. Torch-free: what is asked, not how it is done."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experts.errors import ExciseError

Value = int | str


@dataclass(frozen=True)
class Option:
    """One setting, written in recipes as name=value.

    default: its type is the setting's type; choices: the only values, if any; least: the smallest number that
    means something.
    """

    default: Value
    help: str
    choices: tuple[str, ...] = ()
    least: int = 0

    def parse(self, where: str, text: str) -> Value:
        """The value of that text. Raises ExciseError that names the setting."""
        if isinstance(self.default, int):
            if not (text.isascii() and text.isdigit()):
                raise ExciseError(f"{where}: expected a whole number, got {text!r}")
            if int(text) < self.least:
                raise ExciseError(f"{where} is {text}; it has to be at least {self.least}")
            return int(text)
        if self.choices and text not in self.choices:
            raise ExciseError(f"{where}: expected one of {', '.join(self.choices)}, got {text!r}")
        return text


@dataclass(frozen=True)
class Measurement:
    """An experiment with all its settings. Criteria that need the same one share its results."""

    kind: str
    settings: tuple[tuple[str, Value], ...]

    @property
    def key(self) -> str:
        """Identity, for example removal:mode=reroute,windows=0."""
        return f"{self.kind}:{','.join(f'{name}={value}' for name, value in self.settings)}"

    @property
    def values(self) -> dict[str, Any]:
        return dict(self.settings)


@dataclass(frozen=True)
class Experiment:
    """kind: its row in criteria/measure.py; options: its settings by name."""

    kind: str
    options: Mapping[str, Option]

    def settled(self, criterion: str, text: str) -> Measurement:
        """The measurement that `name=value,name=value` asks for; what is not named has its default."""
        values = {name: option.default for name, option in self.options.items()}
        for part in filter(None, text.split(",")):
            name, equals, value = part.partition("=")
            if name not in self.options or not equals:
                known = "; ".join(f"{name}=… {option.help}" for name, option in self.options.items())
                raise ExciseError(f"criterion {criterion!r}: no setting {part!r}; it has {known}")
            values[name] = self.options[name].parse(f"criterion {criterion!r}: {name}", value)
        return Measurement(self.kind, tuple(values.items()))


def mode(default: str) -> Option:
    """What "removed" means in this experiment (experts.ablation.Mode without mean, which needs a text of its own)."""
    return Option(
        default, "what removal means: zero, renormalize or reroute", ("zero", "renormalize", "reroute")
    )


WINDOWS = Option(0, "calibration windows used, evenly spread; 0 = all")
POSITION = Experiment("position", {"mode": mode("zero"), "windows": WINDOWS})
OUTCOME = Option("loss", "what is measured: loss = ΔCE, kl = KL(unpruned ‖ pruned)", ("loss", "kl"))
REMOVAL = Experiment("removal", {"mode": mode("reroute"), "outcome": OUTCOME, "windows": WINDOWS})
GREEDY = Experiment(
    "greedy",
    {
        "step": Option(
            1,
            "experts removed per round: of every layer in scope layer, of the whole model in scope global",
            least=1,
        ),
        "rounds": Option(0, "rounds to the (smallest) budget, instead of step; 0 = as many as step needs"),
        "shortlist": Option(
            0, "candidates measured per round, likewise, those with the lowest last estimates; 0 = all"
        ),
        "outcome": OUTCOME,
        "start": Option("causal_removal", "criterion that gives the first estimates"),
        "windows": WINDOWS,
    },
)
GRADIENT = Experiment("gradient", {"windows": WINDOWS})
FISHER = Experiment("fisher", {"probes": Option(4, "random-sign probes", least=1), "windows": WINDOWS})
STEPS = Option(8, "points between α = 1 and α = 0", least=1)
INTEGRATED = Experiment("integrated", {"steps": STEPS, "windows": WINDOWS})


def prerequisites(measurement: Measurement) -> tuple[Measurement, ...]:
    """Experiments whose results another one begins with: they are kept, and shared, on their own."""
    values = measurement.values
    if measurement.kind == "greedy" and values["start"] == "causal_removal":
        return (
            REMOVAL.settled("causal_removal", f"outcome={values['outcome']},windows={values['windows']}"),
        )
    return ()
