"""A plan: which experts every MoE layer keeps. Plain data, JSON on disk, no torch."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experts.arguments import check_kind
from experts.arrays import Ids
from experts.disk.strict_json import read_object
from experts.errors import ExciseError, one_line


@dataclass(frozen=True)
class Plan:
    """The experts that are kept.

    Attributes:
        num_experts: E, the experts of each MoE layer before pruning
        kept: decoder layer -> sorted ids of the kept experts, for each of the L MoE layers
        model: fingerprint of the checkpoint the plan was made for; empty = any model of that shape
        criterion: what ranked the experts, printed in reports and the model card
        budget: what was asked for, printed in reports and the model card
        reverse: the plan of that budget that removes first what this one keeps, None = unknown (not stored)
        protected: decoder layer -> ids that are kept in every plan, random ones too (not stored)
        scope: of the budget, `layer` or `global`, for reports (not stored)
        formula: of the criterion, for reports (not stored)
        seen: token windows that the scores were made from [N, W], on which the plan cannot be tested;
            None = not known (not stored)
    """

    num_experts: int
    kept: Mapping[int, tuple[int, ...]]
    model: str = ""
    criterion: str = ""
    budget: str = ""
    reverse: "Plan | None" = field(default=None, compare=False, repr=False)
    protected: Mapping[int, tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)
    scope: str = field(default="layer", compare=False, repr=False)
    formula: str = field(default="", compare=False, repr=False)
    seen: Ids | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for layer, ids in self.kept.items():
            self._check_layer(layer, ids)

    def _check_layer(self, layer: int, ids: tuple[int, ...]) -> None:
        if not ids:
            raise ExciseError(
                f"plan: layer {layer} keeps no expert; every MoE layer must keep at least top_k"
            )
        if list(ids) != sorted(set(ids)):
            raise ExciseError(
                f"plan: the expert ids of layer {layer} must be sorted and without repeats, got {list(ids)}"
            )
        for expert in (ids[0], ids[-1]):
            if not 0 <= expert < self.num_experts:
                last = self.num_experts - 1
                raise ExciseError(
                    f"plan: layer {layer} keeps expert {expert}, but the model has experts 0..{last}"
                )

    @property
    def counts(self) -> dict[int, int]:
        """Decoder layer -> how many experts are kept."""
        return {layer: len(ids) for layer, ids in self.kept.items()}

    @property
    def total(self) -> int:
        """How many experts are kept in all layers together."""
        return sum(self.counts.values())

    @property
    def uniform(self) -> bool:
        """Whether all layers keep equally many experts."""
        return len(set(self.counts.values())) == 1

    @property
    def fraction(self) -> float:
        """Share of all experts that is removed, in [0, 1)."""
        return 1 - self.total / (self.num_experts * len(self.kept))

    @property
    def digest(self) -> str:
        """Identity of the choice alone: equal for two plans that keep the same experts."""
        choice = json.dumps([self.num_experts, sorted(self.kept.items())])
        return hashlib.sha256(choice.encode()).hexdigest()[:16]

    def check_model(self, layers: tuple[int, ...], num_experts: int, fingerprint: str = "") -> None:
        """Refuse a plan that was made for another model.

        Args:
            layers: decoder layers of the model that hold experts
            num_experts: E, in every one of them
            fingerprint: of the model; compared where the plan has one too

        Raises:
            ExciseError: layers, counts or fingerprint differ.
        """
        if num_experts != self.num_experts:
            raise ExciseError(
                f"plan for another model: it counts {self.num_experts} experts per layer, "
                f"the model has {num_experts}"
            )
        if set(layers) != set(self.kept):
            raise ExciseError(
                f"plan for another model: it prunes layers {sorted(self.kept)}, "
                f"the model's MoE layers are {list(layers)}"
            )
        if fingerprint and self.model and fingerprint != self.model:
            raise ExciseError(
                f"plan for another model: it was made for fingerprint {self.model}, "
                f"this one has {fingerprint}; "
                'make the plan again, or empty its "model" entry if you are sure'
            )

    def of_layers(self, layers: tuple[int, ...]) -> "Plan":
        """The plan for a part of the model alone."""
        return replace(self, kept={layer: self.kept[layer] for layer in layers})

    def to_json(self) -> dict[str, Any]:
        """The plan as it is stored in excise_plan.json."""
        return {
            "model": self.model,
            "criterion": self.criterion,
            "budget": self.budget,
            "experts": self.num_experts,
            "kept": {str(layer): list(ids) for layer, ids in sorted(self.kept.items())},
        }

    @classmethod
    def from_json(cls, data: Any, origin: str = "plan") -> "Plan":
        """The plan of a parsed file. `origin` names the file in errors."""
        try:
            kept = {int(layer): tuple(ids) for layer, ids in data["kept"].items()}
            if not kept or not _are_integers([data["experts"], *itertools.chain(*kept.values())]):
                raise ValueError("expert ids and counts are whole numbers, and some layer must be there")
            model, criterion, budget = (str(data.get(key, "")) for key in ("model", "criterion", "budget"))
            return cls(data["experts"], kept, model, criterion, budget)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else one_line(error)
            raise ExciseError(
                f'{origin}: not a plan; expected {{"experts": E, "kept": {{"layer": [ids]}}}} ({reason})'
            ) from error

    @classmethod
    def read(cls, path: str | Path) -> "Plan":
        """The plan of a JSON file. Raises ExciseError where there is none."""
        check_kind("path", path, (str, Path), "the path of a plan.json")
        return cls.from_json(read_object(Path(path), "no such plan file"), str(path))


def _are_integers(values: list[Any]) -> bool:
    return all(type(value) is int for value in values)  # no truth values


def whole_plan(num_experts: int, layers: Iterable[int]) -> Plan:
    """The plan that keeps every expert of these decoder layers."""
    return Plan(num_experts, dict.fromkeys(layers, tuple(range(num_experts))))
