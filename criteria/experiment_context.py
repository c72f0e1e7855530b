"""What an experiment works with: model, calibration windows, budget, and a place for unfinished results."""

from dataclasses import dataclass, field, replace

from torch import Tensor

from criteria.budget import Budget
from criteria.statistics import Statistics
from criteria.text.windows import Windows
from experts.anatomy import Anatomy
from experts.arrays import Marks
from experts.errors import ExciseError
from experts.shape import Shape
from experts.stored_arrays import StoredArrays


@dataclass(frozen=True)
class ExperimentContext:
    """A loaded model on its calibration text.

    Attributes:
        anatomy: the model
        windows: the calibration text
        batch: windows per forward
        statistics: of the same windows
        shape: of the model as it is on disk
        budget: how many experts a plan may keep
        protected: experts that every plan keeps [L, E]
        partial: takes results that an interruption must not lose
    """

    anatomy: Anatomy
    windows: Windows
    batch: int
    statistics: Statistics
    shape: Shape
    budget: Budget
    protected: Marks
    partial: StoredArrays = field(default_factory=StoredArrays)

    def without_partial(self) -> "ExperimentContext":
        """Return the same without storage, for an experiment inside another one."""
        return replace(self, partial=StoredArrays())

    def chosen(self, count: int) -> Windows:
        """Return `count` of the windows, evenly spread over all sources; 0 = all.

        Raises:
            ExciseError: windows have padding, whose tokens would count as text.
        """
        if not self.windows.mask.all():
            raise ExciseError("interventions are measured on full windows; these have padding")
        if count == 0 or count >= len(self.windows):
            return self.windows
        return self.windows.select(self.windows.spread(count))

    def tokens(self, count: int) -> Tensor:
        """Return the token ids of the chosen windows on the model's device [N, W]; see `chosen`."""
        return self.chosen(count).tensor(self.anatomy.device)
