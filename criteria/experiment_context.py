"""What an experiment works with: model, calibration windows, budget, and a place for what an interruption must not lose."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from criteria.budget import Budget
from criteria.statistics import Array, Statistics
from criteria.text.windows import Windows
from experts.anatomy import Anatomy
from experts.errors import ExciseError
from experts.files import save_arrays
from experts.shape import Shape


@dataclass(frozen=True)
class Store:
    """Results of an experiment on disk, finished or not. path: None keeps nothing; key: what they belong to, all inputs included."""

    path: Path | None = None
    key: str = ""

    def read(self) -> dict[str, Array]:
        """What an earlier run left, or nothing; an unreadable file is nothing, and the experiment is run again."""
        if self.path is None:
            return {}
        try:
            with safe_open(self.path, "numpy") as file:
                same = (file.metadata() or {}).get("key") == self.key
                return {name: file.get_tensor(name) for name in file.keys()} if same else {}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError):
            return {}

    def write(self, arrays: Mapping[str, Array]) -> None:
        """Replaces what was kept before."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_arrays(self.path, arrays, {"key": self.key})

    def clear(self) -> None:
        """Forgets it."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class ExperimentContext:
    """batch: windows per forward; statistics: of the same windows; budget, shape: what a plan may keep; protected: stays anyway [L, E]."""

    anatomy: Anatomy
    windows: Windows
    batch: int
    statistics: Statistics
    shape: Shape
    budget: Budget
    protected: NDArray[np.bool_]
    partial: Store = Store()

    def without_partial(self) -> "ExperimentContext":
        """The same, keeping nothing: for an experiment inside another one."""
        return replace(self, partial=Store())

    def chosen(self, count: int) -> Windows:
        """`count` of the windows, evenly spread over all sources; 0 = all. Raises ExciseError for padded windows."""
        if not self.windows.mask.all():
            raise ExciseError("interventions are measured on full windows; these have padding")
        if count == 0 or count >= len(self.windows):
            return self.windows
        return self.windows.select(
            np.unique(np.linspace(0, len(self.windows) - 1, count).round().astype(np.int64))
        )

    def tokens(self, windows: Windows) -> torch.Tensor:
        """On the model's device [N, W]."""
        return torch.from_numpy(windows.tokens).to(self.anatomy.device)
