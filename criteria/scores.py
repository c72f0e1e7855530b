"""Scores: one number per expert, higher = keep.

Kept on disk, they serve other budgets without a second calibration.
"""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open

from criteria.budget import Budget
from criteria.criterion import Criterion
from criteria.mixture import mixed
from criteria.searched import from_text, to_text
from criteria.statistics import Statistics
from criteria.text.windows import Windows
from experts.arguments import check_kind
from experts.arrays import Array, Marks
from experts.disk.layout import Layout
from experts.errors import ExciseError, one_line
from experts.stored_arrays import save_arrays

if TYPE_CHECKING:
    from experts.model import Model


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
        layout: the model's shape and sizes; None = not known, so that nothing can be selected
        text: the calibration windows, on which no plan of these scores can be tested; None = not known
        searched: the budget that a search went down to; None = there was none, or it is not known
    """

    values: Array
    protected: Marks
    layers: tuple[int, ...]
    criterion: str
    formula: str
    model: str = ""
    data: str = ""
    layout: Layout | None = field(default=None, compare=False, repr=False)
    text: Windows | None = field(default=None, compare=False, repr=False)
    searched: Budget | None = field(default=None, compare=False)

    @classmethod
    def read(cls, path: str | Path, model: "Model", *, criterion: str) -> "Scores":
        """Read one criterion's scores from the scores.safetensors of a run.

        The file does not hold the calibration text, so nothing refuses a test on that text.

        Args:
            path: the file
            model: whose scores they are, loaded or not
            criterion: name of the criterion, as in the recipe

        Raises:
            ExciseError: there is no such file or criterion, or the scores are of another model.
        """
        check_kind("path", path, (str, Path), "the path of a scores.safetensors")
        path = Path(path)
        values, protected, provenance = _read_arrays(path, criterion)
        _check_model(path, values, provenance, model)
        formula = provenance.get(f"formula of {criterion}", "")
        searched = provenance.get(f"searched of {criterion}")
        return cls(
            values,
            protected,
            model.shape.layers,
            criterion,
            formula,
            model.fingerprint,
            provenance.get("data", ""),
            model.layout,
            searched=None if searched is None else from_text(searched, str(path)),
        )

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
    if criterion.mix:
        statistics = mixed(statistics, criterion.mix)
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
    provenance |= {f"searched of {one.criterion}": to_text(one.searched) for one in table if one.searched}
    common = {"model": table[0].model, "data": table[0].data, "layers": ",".join(map(str, table[0].layers))}
    save_arrays(path, {**tensors, "protected": table[0].protected.astype(np.uint8)}, {**common, **provenance})


def _read_arrays(path: Path, criterion: str) -> tuple[Array, Marks, dict[str, str]]:
    """One criterion's scores [L, E], the protected experts [L, E], and the file's provenance."""
    try:
        with safe_open(path, "numpy") as file:
            if criterion not in file.keys():  # noqa: SIM118 - not a dict
                known = sorted(set(file.keys()) - {"protected"})
                raise ExciseError(f"{path}: no scores of {criterion!r}; it has {known}")
            values, protected = file.get_tensor(criterion), file.get_tensor("protected").astype(bool)
            return values, protected, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ExciseError(f"{path}: not a score file ({error})") from error


def _check_model(path: Path, values: Array, provenance: dict[str, str], model: "Model") -> None:
    """Refuse scores of another model, layer count or expert count."""
    made_for, layers = provenance.get("model"), model.shape.layers
    if made_for and made_for != model.fingerprint:
        raise ExciseError(
            f"{path}: scores of another model (fingerprint {made_for}, this one has {model.fingerprint})"
        )
    expected = (len(layers), model.shape.num_experts)
    if values.shape != expected or provenance.get("layers") != ",".join(map(str, layers)):
        held = f"{path}: scores of shape {values.shape} for layers {provenance.get('layers')}"
        raise ExciseError(f"{held}; the model has L, E = {expected[0]}, {expected[1]}")
