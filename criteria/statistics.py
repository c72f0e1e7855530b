"""Statistics: what one forward pass over text leaves behind, as mergeable sums and counts. Numpy only, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from experts.arrays import Array, Marks
from experts.errors import ExciseError, one_line
from experts.stored_arrays import save_arrays


@dataclass(frozen=True)
class Statistics:
    """Sums over the tokens of a text, per MoE layer (L) and expert (E), all float64. X_e = tokens routed to e.

    tokens: number of tokens, padding excluded, per domain [D].
    moments: Σ_{X_e} g^a ‖f‖₂^b for a, b in {0, 1, 2} [L, E, 3, 3]; moments[..., 0, 0] is the count n_e. g is the gate weight
        that is really applied, f the expert's output before it.
    peak: max over X_e and channels of |f| [L, E]; merged with maximum. 0 where n_e = 0.
    turning: Σ_t g ‖f‖ · max(1 − cos(h, h + y), 0) [L, E], h the residual stream before the block, y the routed output (EASY-EP).
    together: number of tokens that activate both i and j [L, E, E].
    by_domain: n_e in each domain [L, E, D].
    router_norm: ‖router row‖₂ [L, E]; weight_l1, weight_l2: Σ|w| and Σw² over the expert's matrices [L, E]; weight_count: their
        number of elements. Properties of the weights, equal in every part that is merged.
    measured: results of experiments by their key (criteria/experiment.py) and name. They belong to one text and one budget, so they
        are neither merged nor saved with the sums.
    """

    tokens: Array
    moments: Array
    peak: Array
    turning: Array
    together: Array
    by_domain: Array
    router_norm: Array
    weight_l1: Array
    weight_l2: Array
    weight_count: Array
    measured: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        every = [getattr(self, name) for name in ARRAYS] + [
            array for results in self.measured.values() for array in results.values()
        ]
        for array in every:  # criteria of users read the same arrays: none may change them for the next
            array.flags.writeable = False

    def __add__(self, other: "Statistics") -> "Statistics":
        """The statistics of both texts together: sums add, maxima take the larger, weights must agree."""
        if self.together.shape != other.together.shape or self.tokens.shape != other.tokens.shape:
            raise ExciseError(
                f"cannot merge statistics of shapes {self.by_domain.shape} and {other.by_domain.shape} [L, E, D]"
            )
        if not np.allclose(self.weight_l2, other.weight_l2):
            raise ExciseError("cannot merge statistics of two models: their expert weights differ")
        sums = {
            key: getattr(self, key) + getattr(other, key)
            for key in ("tokens", "moments", "turning", "together", "by_domain")
        }
        return replace(self, measured={}, peak=np.maximum(self.peak, other.peak), **sums)

    @property
    def count(self) -> Array:
        """n_e: tokens routed to each expert [L, E]."""
        count: Array = self.moments[..., 0, 0]
        return count

    @property
    def unreached(self) -> Marks:
        """Experts that no token reached [L, E]: their means do not exist."""
        none: Marks = self.count == 0
        return none

    def save(self, path: Path, provenance: dict[str, str]) -> None:
        """Atomic: a reader finds what was there, or all of it."""
        save_arrays(path, {name: getattr(self, name) for name in ARRAYS}, provenance)

    @classmethod
    def read(cls, path: Path) -> tuple["Statistics", dict[str, str]]:
        """The statistics and their provenance. Raises ExciseError for a damaged or foreign file."""
        try:
            with safe_open(path, "numpy") as file:
                return cls(**{name: file.get_tensor(name) for name in ARRAYS}), file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise ExciseError(f"{path}: not a statistics file ({one_line(error)})") from error


ARRAYS = tuple(part.name for part in fields(Statistics) if part.name != "measured")
