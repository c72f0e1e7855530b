"""Scores: one number per expert, higher = keep.

Kept on disk, they serve other budgets without a second calibration.
"""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from criteria.registry import Criterion
from criteria.statistics import Statistics
from experts.arrays import Array, Marks
from experts.disk.layout import Layout
from experts.errors import ExciseError, one_line
from experts.stored_arrays import save_arrays


@dataclass(frozen=True)
class Scores:
    """A number per expert; higher = keep.

    Attributes:
        values: [L, E] float64; nan where an expert has no data (it is pruned first)
        protected: [L, E] bool; experts that are never pruned
        layers: decoder index of each of the L rows
        criterion: name of the criterion, with its settings
        formula: how the numbers are made
        model: fingerprint of the checkpoint
        data: hash of the calibration windows
        layout: the model's shape and sizes, where the scores were made in this process
    """

    values: Array
    protected: Marks
    layers: tuple[int, ...]
    criterion: str
    formula: str
    model: str = ""
    data: str = ""
    layout: Layout | None = field(default=None, compare=False, repr=False)

    @property
    def reversed(self) -> "Scores":
        """The same numbers turned round: what was kept first goes first."""
        return replace(
            self,
            values=-self.values,
            criterion=f"reversed:{self.criterion}",
            formula=f"−({self.formula})",
        )

    @property
    def digest(self) -> str:
        """Identity of the numbers."""
        return hashlib.sha256(self.values.tobytes() + self.protected.tobytes()).hexdigest()[:16]


def score(
    criterion: Criterion,
    statistics: Statistics,
    layers: tuple[int, ...],
    protected: Marks,
    model: str,
    data: str,
) -> Scores:
    """Apply a criterion and check what it returned: one finite number for every expert that tokens reached.

    Raises:
        ExciseError: the criterion failed, or returned another shape, or a number that is not finite.
    """
    try:
        values = np.asarray(criterion.score(statistics), dtype=np.float64)
    except ExciseError:
        raise
    except (Exception, SystemExit) as error:
        raise ExciseError(
            f"criterion {criterion.name}: failed with {type(error).__name__}: {one_line(error)}"
        ) from error
    if values.shape != statistics.count.shape:
        raise ExciseError(
            f"criterion {criterion.name}: returned shape {values.shape}, "
            f"expected [L, E] = {statistics.count.shape}"
        )
    if (wrong := np.argwhere(~np.isfinite(values) & ~statistics.unreached)).size:
        row, expert = wrong[0]
        tokens = int(statistics.count[row, expert])
        where = f"expert {expert} of layer {layers[row]}, which {tokens} tokens reached"
        raise ExciseError(
            f"criterion {criterion.name}: gave {values[row, expert]} to {where}; "
            "are the model's weights finite in this dtype?"
        )
    # No data is no data: an infinite score would keep an expert that does nothing.
    values = np.where(np.isfinite(values), values, np.nan)
    return Scores(values, protected, layers, criterion.name, criterion.formula, model, data)


def save(path: Path, table: list[Scores]) -> None:
    """Write all scores of a run into one safetensors file: a tensor [L, E] per criterion, with provenance."""
    tensors = {scores.criterion: scores.values for scores in table}
    provenance = {f"formula of {scores.criterion}": scores.formula for scores in table}
    common = {"model": table[0].model, "data": table[0].data, "layers": ",".join(map(str, table[0].layers))}
    save_arrays(path, {**tensors, "protected": table[0].protected.astype(np.uint8)}, {**common, **provenance})


def load(path: Path, criterion: str, layers: tuple[int, ...], experts: int, model: str) -> Scores:
    """One criterion's scores. Refused for another model, layer count or expert count."""
    try:
        with safe_open(path, "numpy") as file:
            provenance = file.metadata() or {}
            if criterion not in file.keys():  # noqa: SIM118 - not a dict
                raise ExciseError(
                    f"{path}: no scores of {criterion!r}; it has {sorted(set(file.keys()) - {'protected'})}"
                )
            values, protected = file.get_tensor(criterion), file.get_tensor("protected").astype(bool)
    except (SafetensorError, OSError) as error:
        raise ExciseError(f"{path}: not a score file ({error})") from error
    if model and provenance.get("model") and provenance["model"] != model:
        raise ExciseError(
            f"{path}: scores of another model (fingerprint {provenance['model']}, this one has {model})"
        )
    if values.shape != (len(layers), experts) or provenance.get("layers") != ",".join(map(str, layers)):
        found = f"{path}: scores of shape {values.shape} for layers {provenance.get('layers')}"
        raise ExciseError(f"{found}; the model has L, E = {len(layers)}, {experts}")
    return Scores(
        values,
        protected,
        layers,
        criterion,
        provenance.get(f"formula of {criterion}", ""),
        model,
        provenance.get("data", ""),
    )
