"""What `excise effects` is asked for, and what of it can be refused before anything is loaded."""

import os
from dataclasses import dataclass
from pathlib import Path

from criteria.text.bos import Bos
from experts.errors import ExciseError
from experts.files import check_name, check_writable
from experts.keys import key_of
from experts.memory_settings import MemorySettings, mode_of
from experts.modes import Mode, Scope
from experts.shape import Shape
from experts.units import parse_memory


@dataclass(frozen=True)
class Request:
    """A table of effects to be measured.

    Attributes:
        model: folder, `demo` or hub id.
        text: file that windows are cut from.
        output: the table, .parquet or .csv.
        window: tokens per window, W.
        sequences: windows; 0 = all of the text.
        layers: decoder layers; none = all with experts.
        experts: expert ids; none = all.
        scope: where an expert is removed: at one position, in the window, or everywhere.
        mode: what removal means.
        dtype: precision of the model in memory; auto = as stored.
        trust_remote_code: run model code that comes with the checkpoint.
        force: replace a table that exists, and drop the pieces of another measurement.
        bos: whether windows begin with the token for the beginning of a text.
        memory: whether the weights stay in memory: auto, resident or streamed.
        memory_limit: most memory for weights and hidden states, like 24GB; empty = what is free.
        spill: folder for hidden states that do not fit; None = beside the table.
    """

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
    memory: str = "auto"
    memory_limit: str = ""
    spill: Path | None = None

    def check(self, shape: Shape) -> tuple[int, ...]:
        """Refuse what cannot be measured on a model of this shape.

        Returns:
            The places of the asked layers among the L MoE layers, ascending.

        Raises:
            ExciseError: a layer or an expert does not exist, or as `check_alone`.
        """
        self.check_alone()
        for layer in self.layers:
            if layer not in shape.layers:
                raise ExciseError(
                    f"--layers: layer {layer} is dense or absent; "
                    f"the layers with experts are {_listed(shape.layers)}"
                )
        for expert in self.experts:
            if not 0 <= expert < shape.num_experts:
                raise ExciseError(
                    f"--experts: expert {expert} is out of range; "
                    f"a layer has experts 0 to {shape.num_experts - 1}"
                )
        layers = self.layers or shape.layers
        return tuple(sorted({shape.layers.index(layer) for layer in layers}))

    def check_alone(self) -> None:
        """Refuse what needs no model to be refused.

        Raises:
            ExciseError: windows without an effect, no such text, or a table that cannot be written.
        """
        if self.window < 2:
            raise ExciseError(
                f"--window is {self.window}: an effect needs a token and the one that follows it"
            )
        if self.sequences < 0:
            raise ExciseError(
                f"--sequences is {self.sequences}; it is a number of windows, 0 = all of the text"
            )
        if self.memory_limit:
            self._limit()
        if self.spill is not None:
            check_writable(self.spill, "--spill")
        if not self.text.exists():
            raise ExciseError(f"--text {self.text}: No such file or directory")
        self._check_output()

    def memory_settings(self, beside: Path) -> MemorySettings:
        """What is said about memory. beside: folder for what waits on disk, if none is named."""
        limit = self._limit() if self.memory_limit else None
        spill = beside if self.spill is None else self.spill / f"excise-{key_of(str(beside.absolute()))}"
        return MemorySettings(mode_of(self.memory), limit, spill)

    def _limit(self) -> int:
        try:
            return parse_memory(self.memory_limit, "--memory-limit")
        except ValueError as error:
            raise ExciseError(str(error)) from error

    def _check_output(self) -> None:
        """The table has a name of a known format, and can be written."""
        check_name(self.output.absolute())
        if self.output.suffix.lower() not in (".parquet", ".csv"):
            raise ExciseError(f"{self.output}: the name of the table must end in .parquet or .csv")
        if self.output.is_dir():
            raise ExciseError(f"{self.output}: is a folder; name a file")
        if self.output.exists() and not self.force:
            raise ExciseError(f"{self.output}: exists; choose another --output, or --force to replace it")
        parent = next(folder for folder in self.output.absolute().parents if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise ExciseError(f"{self.output}: cannot be written, {parent} is not a folder one can write to")


def numbers(option: str, text: str | None) -> tuple[int, ...]:
    """The numbers of a list like 0,2,5 or a range like 0-5.

    Args:
        option: name of the option, for the error message.
        text: None or empty = no numbers.

    Raises:
        ExciseError: a part is neither a number nor a range.
    """
    found: list[int] = []
    for part in filter(None, (text or "").split(",")):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ExciseError(f"{option} {text}: expected numbers like 0,2,5 or 0-5, got {part!r}")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def _listed(layers: tuple[int, ...]) -> str:
    """The layers of a model as a range, or one by one where there are gaps."""
    first, last = layers[0], layers[-1]
    if len(layers) > 2 and layers == tuple(range(first, last + 1)):
        return f"{first} to {last}"
    return ", ".join(map(str, layers))
