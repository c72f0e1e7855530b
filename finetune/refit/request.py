"""What a refit is asked for: on which text, and how."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property

from criteria.text.windows import Windows, check_windows
from experts.arguments import check_choice, check_count, check_kind
from experts.errors import ExciseError
from experts.keys import key_of
from experts.model import Model, check_model
from finetune.distill.settings import Local
from finetune.refit.fewest import check_fewest
from finetune.refit.precision import Precision, precisions_of
from finetune.refit.result import FULL, SCALE


@dataclass(frozen=True)
class Request:
    """The same for a criterion's plan and for random ones.

    Attributes:
        text: windows to refit on
        ridge: λ above 0; None = chosen
        fewest: an expert that fewer tokens go to stays as it is
        batch: windows per forward
        form: FULL, or SCALE: one factor a layer
        local: how every layer is trained afterwards; None = it is not
        precisions: in which the checkpoint stores the layers, by decoder layer (`of_model`); none = as solved
    """

    text: Windows
    ridge: float | None = None
    fewest: int = 16
    batch: int = 8
    form: str = FULL
    local: Local | None = None
    precisions: Mapping[int, Precision] = field(default_factory=dict, compare=False)

    def check(self) -> None:
        """Refuse what no model could be refitted by.

        Raises:
            ExciseError: a number is out of its range, or the text has one window.
        """
        check_windows("text", self.text)
        check_count("fewest", self.fewest, 0)
        check_count("batch", self.batch)
        check_choice("form", self.form, (FULL, SCALE))
        if self.local is not None:
            check_kind("local", self.local, Local, "a finetune.Local")
        number = isinstance(self.ridge, int | float) and not isinstance(self.ridge, bool)
        if self.ridge is not None and not (number and self.ridge > 0):
            raise ExciseError(f"ridge is {self.ridge}; λ is a number above 0, or None to have it chosen")
        check_fewest(len(self.text))

    @cached_property
    def key(self) -> str:
        """Identity of the text and of all settings."""
        training = () if self.local is None else astuple(self.local)
        return key_of("refit", self.text.hash, self.ridge, self.fewest, self.batch, self.form, *training)

    def key_on(self, model: Sequence[str]) -> str:
        """Identity of the refit of a model. model: its identity."""
        return key_of(self.key, *model)

    def of_model(self, model: Model) -> "Request":
        """The same, checked, for a model: what is refitted is rounded to what its checkpoint stores.

        Raises:
            ExciseError: it is no model; or as `check`.
        """
        check_model(model)
        self.check()
        return replace(self, precisions=precisions_of(model.layout))
