"""What `excise effects` is asked for, and what of it can be refused before anything is loaded. No torch."""

import os
from dataclasses import dataclass
from pathlib import Path

from criteria.text.bos import Bos
from experts.errors import ExciseError
from experts.files import check_name
from experts.modes import Mode, Scope
from experts.shape import Shape


@dataclass(frozen=True)
class Request:
    """window: tokens; sequences: windows, 0 = all the text has; layers: decoder layers, none = all with experts; experts: none = all."""

    model: str
    text: Path
    output: Path
    window: int = 256
    sequences: int = 0
    layers: tuple[int, ...] = ()
    experts: tuple[int, ...] = ()
    scope: Scope = Scope.POSITION
    mode: Mode = Mode.ZERO
    dtype: str = "auto"
    trust_remote_code: bool = False
    force: bool = False
    bos: Bos = Bos.AUTO

    def check(self, shape: Shape) -> tuple[int, ...]:
        """Positions of the layers among the MoE layers. Raises ExciseError for whatever cannot be measured."""
        self.check_alone()
        for layer in self.layers:
            if layer not in shape.layers:
                raise ExciseError(
                    f"--layers: layer {layer} is dense or absent; the layers with experts are {_listed(shape.layers)}"
                )
        for expert in self.experts:
            if not 0 <= expert < shape.num_experts:
                raise ExciseError(
                    f"--experts: expert {expert} is out of range; a layer has experts 0 to {shape.num_experts - 1}"
                )
        return tuple(sorted({shape.layers.index(layer) for layer in self.layers or shape.layers}))

    def check_alone(self) -> None:
        """What no model is needed for: windows, a text that is there, a table that can be written."""
        if self.window < 2:
            raise ExciseError(
                f"--window is {self.window}: an effect needs a token and the one that follows it"
            )
        if self.sequences < 0:
            raise ExciseError(
                f"--sequences is {self.sequences}; it is a number of windows, 0 = all of the text"
            )
        if not self.text.exists():
            raise ExciseError(f"{self.text}: No such file or directory")
        check_name(self.output.absolute())
        if self.output.suffix.lower() not in (".parquet", ".csv"):
            raise ExciseError(f"{self.output}: the name of the table must end in .parquet or .csv")
        if self.output.is_dir():
            raise ExciseError(f"{self.output}: is a folder; name a file")
        if self.output.exists() and not self.force:
            raise ExciseError(f"{self.output}: exists; choose another --output, or --force to replace it")
        there = next(folder for folder in self.output.absolute().parents if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise ExciseError(f"{self.output}: cannot be written, {there} is not a folder one can write to")


def numbers(option: str, text: str | None) -> tuple[int, ...]:
    """The numbers of a list like 0,2,5 or a range like 0-5."""
    found: list[int] = []
    for part in filter(None, (text or "").split(",")):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ExciseError(f"{option} {text}: expected numbers like 0,2,5 or 0-5, got {part!r}")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def _listed(layers: tuple[int, ...]) -> str:
    whole = tuple(range(layers[0], layers[-1] + 1))
    return (
        f"{layers[0]} to {layers[-1]}" if layers == whole and len(layers) > 2 else ", ".join(map(str, layers))
    )
