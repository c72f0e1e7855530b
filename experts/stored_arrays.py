"""Arrays on disk that belong to a key: results, finished or not, that a later run takes up."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from experts.arrays import Array
from experts.files import replacing


@dataclass(frozen=True)
class StoredArrays:
    """Arrays by name in one safetensors file.

    Attributes:
        path: the file; None stores nothing
        key: identity of everything the arrays depend on; under another key the file counts as missing
    """

    path: Path | None = None
    key: str = ""

    def read(self) -> dict[str, Array]:
        """Return what an earlier run left; empty where there is none, it has another key or is unreadable."""
        if self.path is None:
            return {}
        try:
            with safe_open(self.path, "numpy") as file:
                if (file.metadata() or {}).get("key") != self.key:
                    return {}
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError):
            return {}

    def write(self, arrays: Mapping[str, Array]) -> None:
        """Replace what was stored before."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_arrays(self.path, arrays, {"key": self.key})

    def clear(self) -> None:
        """Delete the file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def save_arrays(path: Path, arrays: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """Write numpy arrays as a safetensors file that appears whole or not at all.

    The library's own `save_file` makes a file that other users cannot read.

    Args:
        path: where the file goes
        arrays: by name
        metadata: text by name, stored in the file's header
    """
    with replacing(path) as fresh:
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        fresh.write_bytes(safetensors.numpy.save(contiguous, metadata))
