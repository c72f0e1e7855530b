"""What `excise sample` is asked for, and what of it can be refused before anything is loaded."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from criteria.text.bos import Bos
from criteria.text.context_length import context_note
from criteria.text.sampled.settings import Sampled, Start
from experts.disk.find import fetched, find_model
from experts.disk.layout import Layout, lay_out
from experts.disk.loadable import check_loadable
from experts.errors import ExciseError
from experts.files import check_name, check_writable
from experts.notes import tell
from experts.settings import first_problem


@dataclass(frozen=True)
class Request:
    """A file of samples to be written.

    Attributes:
        model: folder, `demo` or hub id.
        output: the file, NAME.jsonl.
        windows: how many, N.
        length: tokens per window, W.
        temperature: logits are divided by it.
        start: what windows begin with.
        seed: of the windows.
        bos: whether windows of start random have the token for the beginning in front.
        dtype: precision of the model in memory; auto = as stored.
        trust_remote_code: run model code that comes with the checkpoint.
        force: replace a file that exists.
    """

    model: str
    output: Path
    windows: int = 128
    length: int = 512
    temperature: float = 1.0
    start: Start = Start.RANDOM
    seed: int = 0
    bos: Bos = Bos.AUTO
    dtype: str = "auto"
    trust_remote_code: bool = False
    force: bool = False

    @property
    def partial(self) -> Path:
        """Where finished windows wait until all are."""
        return self.output.with_name(f"{self.output.name}.partial")

    def settings(self) -> Sampled:
        """The same as a recipe would say it. Raises ExciseError for a value that does not fit."""
        asked = {"temperature": self.temperature, "start": self.start, "seed": self.seed}
        try:
            return Sampled.model_validate(asked)
        except ValidationError as error:
            raise ExciseError(f"--{first_problem(error, Sampled)}") from error

    def check_output(self) -> None:
        """Refuse a file that has another kind of name, exists, or cannot be written."""
        check_name(self.output.absolute())
        if self.output.suffix != ".jsonl":
            raise ExciseError(f"{self.output}: the name of a file of samples ends in .jsonl")
        if self.output.is_dir():
            raise ExciseError(f"{self.output}: is a folder; name a file")
        if self.output.exists() and not self.force:
            raise ExciseError(f"{self.output}: exists; choose another --output, or --force to replace it")
        check_writable(self.output.absolute().parent, str(self.output))


def prepare_sample(request: Request) -> Layout:
    """The model of a request; what cannot be sampled is refused before its weights come, without torch."""
    request.settings()
    request.check_output()
    model = find_model(request.model)
    layout = lay_out(model.headers())
    checkpoint = layout.checkpoint
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    if note := context_note(request.length, checkpoint.config, shapes):
        tell(note)
    check_loadable(checkpoint.config, model.names, model.name, request.trust_remote_code)
    return fetched(model, layout)
