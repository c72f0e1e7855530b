"""The texts of a recipe, as token windows; each is read once, and what must not overlap is refused."""

from collections.abc import Callable
from functools import cached_property

from criteria.text.disjoint import check_disjoint
from criteria.text.for_model import read_for
from criteria.text.windows import Windows
from experts.model import Model
from experts.notes import tell
from prune.recipe.schema import Recipe, TextSettings


class Texts:
    """Calibration, validation and training text of a recipe, cut by the model's tokenizer."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe

    @cached_property
    def calibration(self) -> Windows:
        """What criteria see. Nothing is fitted to the validation text, so their overlap is an error."""
        windows = self.read(self.recipe.calibration)
        check_disjoint(windows, self.validation)
        return windows

    @cached_property
    def validation(self) -> Windows:
        """Held-out text, on which plans are tested."""
        return self.read(self.recipe.validation)

    @cached_property
    def training(self) -> Windows:
        """Text of recovery; what validation reads must not be in it."""
        assert self.recipe.finetune is not None, "asked for only where there is one"
        windows = self.read(self.recipe.finetune)
        check_disjoint(windows, self.validation, "finetune")
        return windows

    @cached_property
    def refit(self) -> Windows:
        """Text of the refit: its own, or that of calibration."""
        assert self.recipe.refit is not None, "asked for only where there is one"
        if self.recipe.refit.text is None:
            return self.calibration
        windows = self.read(self.recipe.refit.text)
        check_disjoint(windows, self.validation, "refit")
        return windows

    def check(self, *, training: bool = False) -> None:
        """Read them now: what cannot be used is refused before any work."""
        _ = self.calibration
        if self.recipe.refit is not None:
            _ = self.refit
        if training:
            _ = self.training

    def reseeded(self, seed: int) -> "Texts":
        """The same with calibration windows of another seed, for plans that are not tested."""
        calibration = self.recipe.calibration.model_copy(update={"seed": seed})
        other = Texts(self.model, self.recipe.model_copy(update={"calibration": calibration}))
        other.calibration = self.read(calibration, _silent)
        other.validation = self.validation
        return other

    def read(self, settings: TextSettings, say: Callable[[str], None] = tell) -> Windows:
        """Windows of one of the recipe's texts. say: takes notes on it."""
        return read_for(
            self.model,
            settings.data,
            sequences=settings.sequences,
            length=settings.length,
            seed=settings.seed,
            bos=settings.bos,
            chat_template=settings.chat_template,
            say=say,
        )


def _silent(_: str) -> None:
    """Takes notes on a text that was told of before."""
