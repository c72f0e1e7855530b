"""Statistics: what one forward pass over text leaves behind, as mergeable sums and counts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from experts.arrays import Array, Marks
from experts.errors import ExciseError, one_line
from experts.stored_arrays import save_arrays

PAIRS = ("pair_norms", "pair_outputs")  # kept only where a criterion of pairs is asked for
# Fields that add up when texts are merged.
ADDED = ("tokens", "moments", "turning", "together", "by_domain", *PAIRS)
FORMS = "replacement/"  # before the names of razor's sums in files


def _nothing() -> Array:
    return np.zeros(0)


@dataclass(frozen=True)
class Statistics:
    """Sums over the tokens of a text, for L MoE layers of E experts and D domains; all float64.

    X_e: the tokens routed to expert e, n_e of them. g: the gate weight that is applied. f: the expert's
    output before it. The norms of weights belong to the model and are equal in all parts that are merged.

    Attributes:
        tokens: number of tokens of each domain, padding excluded [D]
        moments: Σ_{X_e} g^a ‖f‖₂^b for a, b in 0, 1, 2 [L, E, 3, 3]; [..., 0, 0] is n_e
        peak: max over X_e and channels of |f|; 0 where n_e = 0; merged by the maximum [L, E]
        turning: Σ_{X_e} g ‖f‖₂ · max(1 − cos(h, h + y), 0), h the residual stream before the block, y the
            routed output; nan where h cannot be seen [L, E]
        together: number of tokens that activate both of two experts [L, E, E]
        by_domain: n_e in each domain [L, E, D]
        router_norm: ‖router row‖₂ [L, E]
        weight_l1: Σ|w| over the expert's matrices [L, E]
        weight_l2: Σw² over them [L, E]
        weight_count: their number of elements [L, E]
        replacement: form (`criteria.razor.FORMS`) -> what replacing an expert changes at a token: number
            of tokens with a finite δ, Σ δ, Σ δ² [L, E, 3]; only the forms that were asked for
        domains: names of the D domains; empty = not known
        parts: domain -> the same sums of that domain alone, of which all others are made; empty where D = 1
        pair_norms: Σ_t g_i ‖f_i‖₂ · g_j ‖f_j‖₂ over tokens that activate both [L, E, E]; empty where no
            criterion of pairs was asked for
        pair_outputs: likewise Σ_t g_i g_j ⟨f_i, f_j⟩ [L, E, E]
        measured: results of experiments, by the key of the measurement and by name; they belong to one text
            and one budget, so they are neither merged nor saved with the sums
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
    replacement: Mapping[str, Array] = field(default_factory=dict)
    domains: tuple[str, ...] = ()
    parts: "Mapping[str, Statistics]" = field(default_factory=dict)
    pair_norms: Array = field(default_factory=_nothing)
    pair_outputs: Array = field(default_factory=_nothing)
    measured: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Criteria of users read the same arrays: none may change them for the next.
        for name in ARRAYS:
            getattr(self, name).flags.writeable = False
        for results in (self.replacement, *self.measured.values()):
            for array in results.values():
                array.flags.writeable = False

    def __add__(self, other: "Statistics") -> "Statistics":
        """Merge the statistics of two texts: sums add, maxima take the larger, weights must agree.

        Raises:
            ExciseError: they are of two models.
        """
        if self.together.shape != other.together.shape or self.tokens.shape != other.tokens.shape:
            shapes = f"{self.by_domain.shape} and {other.by_domain.shape} [L, E, D]"
            raise ExciseError(f"cannot merge statistics of shapes {shapes}")
        if self.pair_norms.size != other.pair_norms.size:
            raise ExciseError("cannot merge statistics with sums over pairs and statistics without them")
        if not np.allclose(self.weight_l2, other.weight_l2):
            raise ExciseError("cannot merge statistics of two models: their expert weights differ")
        if self.domains != other.domains or self.replacement.keys() != other.replacement.keys():
            kinds = f"domains {self.domains} and {other.domains}"
            kinds += f", razor {sorted(self.replacement)} and {sorted(other.replacement)}"
            raise ExciseError(f"cannot merge statistics of different kinds: {kinds}")
        sums = {name: getattr(self, name) + getattr(other, name) for name in ADDED}
        return replace(
            self,
            measured={},
            peak=np.maximum(self.peak, other.peak),
            replacement={form: sums + other.replacement[form] for form, sums in self.replacement.items()},
            parts={name: part + other.parts[name] for name, part in self.parts.items()},
            **sums,
        )

    @property
    def count(self) -> Array:
        """n_e: tokens routed to each expert [L, E]."""
        count: Array = self.moments[..., 0, 0]
        return count

    @property
    def unreached(self) -> Marks:
        """Experts that no token reached [L, E]: their means do not exist."""
        marks: Marks = self.count == 0
        return marks

    def save(self, path: Path, provenance: dict[str, str]) -> None:
        """Write the sums as a safetensors file that appears whole or not at all.

        Args:
            path: where the file goes
            provenance: text by name, stored in the file's header
        """
        arrays = {name: getattr(self, name) for name in ARRAYS} | _of_forms(self)
        for number, part in enumerate(self.parts.values()):
            own = {name: getattr(part, name) for name in (*ADDED, "peak")} | _of_forms(part)
            arrays |= {f"domain {number}/{name}": values for name, values in own.items()}
        save_arrays(path, arrays, provenance | {"domains": json.dumps(self.domains)})

    @classmethod
    def read(cls, path: Path) -> tuple["Statistics", dict[str, str]]:
        """Read statistics and their provenance.

        Raises:
            ExciseError: the file is damaged, or holds something else.
        """
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            domains = tuple(json.loads(metadata.pop("domains", "[]")))
            numbers = range(len(domains) if len(domains) > 1 else 0)
            parts = [_named(cls, arrays, _inside(arrays, f"domain {number}/")) for number in numbers]
            by_domain = dict(zip(domains, parts, strict=False))
            return replace(_named(cls, arrays, arrays), domains=domains, parts=by_domain), metadata
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
            raise ExciseError(f"{path}: not a statistics file ({one_line(error)})") from error


def _of_forms(statistics: Statistics) -> dict[str, Array]:
    """The sums of razor by the names that they have in a file."""
    return {f"{FORMS}{form}": sums for form, sums in statistics.replacement.items()}


def _inside(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """What a file has under a prefix."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _named(kind: type[Statistics], arrays: Mapping[str, Array], own: Mapping[str, Array]) -> Statistics:
    """Statistics of the arrays of a file, with the sums of the whole text or of one domain.

    Raises:
        KeyError: one is missing.
    """
    fixed: dict[str, Any] = {name: own[name] if name in (*ADDED, "peak") else arrays[name] for name in ARRAYS}
    return kind(**fixed, replacement=_inside(own, FORMS))


APART = ("measured", "replacement", "domains", "parts")  # fields that are no arrays
ARRAYS = tuple(part.name for part in fields(Statistics) if part.name not in APART)
