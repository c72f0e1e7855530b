"""Plan: which experts every MoE layer keeps. Plain data, JSON on disk, no torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experts.disk.strict_json import read_object
from experts.errors import ExciseError, one_line


@dataclass(frozen=True)
class Plan:
    """The experts that survive.

    Attributes:
        num_experts: E, the experts of each MoE layer before pruning
        kept: decoder layer -> sorted ids of the kept experts, for each of the L MoE layers
        model: fingerprint of the checkpoint the plan was made for; empty = any model of that shape
        criterion: what ranked the experts, printed in reports and the model card
        budget: what was asked for, printed in reports and the model card
        reverse: the plan of the same budget that removes first what this one keeps; None = not known. Not
            stored
        protected: decoder layer -> ids that stay in every plan, random ones too. Not stored
    """

    num_experts: int
    kept: Mapping[int, tuple[int, ...]]
    model: str = ""
    criterion: str = ""
    budget: str = ""
    reverse: "Plan | None" = field(default=None, compare=False, repr=False)
    protected: Mapping[int, tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for layer, ids in self.kept.items():
            if not ids:
                raise ExciseError(
                    f"plan: layer {layer} keeps no expert; every MoE layer must keep at least top_k"
                )
            if list(ids) != sorted(set(ids)):
                raise ExciseError(
                    f"plan: the expert ids of layer {layer} must be sorted and without repeats, "
                    f"got {list(ids)}"
                )
            if ids[0] < 0 or ids[-1] >= self.num_experts:
                wrong = ids[0] if ids[0] < 0 else ids[-1]
                raise ExciseError(
                    f"plan: layer {layer} keeps expert {wrong}, "
                    f"but the model has experts 0..{self.num_experts - 1}"
                )

    @property
    def counts(self) -> dict[int, int]:
        return {layer: len(ids) for layer, ids in self.kept.items()}

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def uniform(self) -> bool:
        return len(set(self.counts.values())) == 1

    @property
    def fraction(self) -> float:
        """Share of all experts that is removed, in [0, 1)."""
        return 1 - self.total / (self.num_experts * len(self.kept))

    @property
    def digest(self) -> str:
        """Identity of the choice alone: equal for two plans that keep the same experts."""
        return hashlib.sha256(json.dumps([self.num_experts, sorted(self.kept.items())]).encode()).hexdigest()[
            :16
        ]

    def check_model(self, layers: tuple[int, ...], experts: int, fingerprint: str = "") -> None:
        """Refuses a plan that was made for another model."""
        if experts != self.num_experts:
            raise ExciseError(
                f"plan for another model: it counts {self.num_experts} experts per layer, "
                f"the model has {experts}"
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

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "criterion": self.criterion,
            "budget": self.budget,
            "experts": self.num_experts,
            "kept": {str(layer): list(ids) for layer, ids in sorted(self.kept.items())},
        }

    @classmethod
    def from_json(cls, data: Any, origin: str = "plan") -> "Plan":
        try:
            kept = {int(layer): tuple(ids) for layer, ids in data["kept"].items()}
            if not kept or not all(
                type(i) is int for ids in (*kept.values(), (data["experts"],)) for i in ids
            ):
                raise ValueError("expert ids and counts are whole numbers, and some layer must be there")
            model, criterion, budget = (str(data.get(key, "")) for key in ("model", "criterion", "budget"))
            return cls(data["experts"], kept, model, criterion, budget)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = f"no {error}" if isinstance(error, KeyError) else one_line(error)
            raise ExciseError(
                f'{origin}: not a plan; expected {{"experts": E, "kept": {{"layer": [ids]}}}} ({why})'
            ) from error

    @classmethod
    def read(cls, path: Path) -> "Plan":
        return cls.from_json(read_object(path, "no such plan file"), str(path))
