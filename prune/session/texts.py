"""The texts of a recipe, as token windows; each is read once, and what must not overlap is refused."""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from criteria.text.disjoint import check_disjoint, without_repeats
from criteria.text.for_model import check_length, read_for
from criteria.text.sampled.from_model import SampledFromModel
from criteria.text.sampled.own_text import SampleStore
from criteria.text.windows import Windows
from experts.errors import ExciseError
from experts.model import Model
from experts.notes import tell
from prune.recipe.schema import Recipe, TextSettings


class Texts:
    """Calibration, validation and training text of a recipe, cut by the model's tokenizer.

    Attributes:
        model: its tokenizer cuts the text, and it writes what is sampled
        recipe: names the sources
        store: where windows are kept that the model writes itself
    """

    def __init__(self, model: Model, recipe: Recipe, store: SampleStore | None = None) -> None:
        self.model, self.recipe, self.store = model, recipe, store or SampleStore()

    @cached_property
    def calibration(self) -> Windows:
        """What criteria see. Nothing is fitted to the validation text, so their overlap is an error."""
        return self._fitted_to("calibration", self.recipe.calibration)

    @cached_property
    def validation(self) -> Windows:
        """Held-out text, on which plans are tested."""
        return self.read(self.recipe.validation)

    @cached_property
    def training(self) -> Windows:
        """Text of recovery; what validation reads must not be in it."""
        assert self.recipe.finetune is not None, "asked for only where there is one"
        return self._fitted_to("finetune", self.recipe.finetune)

    @cached_property
    def refit(self) -> Windows:
        """Text of the refit: its own, or that of calibration."""
        assert self.recipe.refit is not None, "asked for only where there is one"
        if self.recipe.refit.text is None:
            return self.calibration
        try:
            windows = self.read(self.recipe.refit.text)
        except ExciseError as error:
            raise ExciseError(f"refit.text: {error}") from error
        return self._apart("refit", self.recipe.refit.text, windows)

    def _fitted_to(self, name: str, settings: TextSettings) -> Windows:
        """Read text that something is fitted to. name: of what, for messages."""
        return self._apart(name, settings, self.read(settings))

    def _apart(self, name: str, settings: TextSettings, windows: Windows) -> Windows:
        """Refuse windows that repeat validation text.

        Files of the standard library quote each other, which ones depends on the version of Python. Of its
        splits that validation does not read, such windows are left out instead.
        """
        tested = {source.split for source in self.recipe.validation.data if source.stdlib}
        libraries = [source for source in settings.data if source.stdlib and source.split not in tested]
        others = {source.label for source in settings.data if source not in libraries}
        labels = [label for label in windows.domains if label not in others]
        among = np.isin(windows.domain, [windows.domains.index(label) for label in labels])
        apart = without_repeats(windows, self.validation, among)
        check_disjoint(apart, self.validation, name)
        if missing := len(windows) - len(apart):
            tell(
                f"{name}: {missing} of {len(windows)} windows left out: other files of the standard library, "
                "which validation reads, repeat them"
            )
        return apart

    def check(self, *, training: bool = False) -> None:
        """Read them now: what cannot be used is refused before any work.

        Text that the model writes itself is work: it is drawn when something needs it, and only whether it
        can be, and is as long as the model was made for, is asked here.
        """
        self._check("calibration", self.recipe.calibration)
        if self.recipe.refit and self.recipe.refit.text:
            self._check("refit", self.recipe.refit.text)
        if training and self.recipe.finetune:
            self._check("training", self.recipe.finetune)

    def _check(self, name: str, settings: TextSettings) -> None:
        if not is_drawn(settings):
            getattr(self, name)
            return
        _ = self.validation
        check_length(self.model, settings.length)
        writer = SampledFromModel(self.model, settings.length, settings.seed, settings.bos)
        for source in settings.data:
            writer.check(source)

    def reseeded(self, seed: int) -> "Texts":
        """The same with calibration windows of another seed, for plans that are not tested."""
        calibration = self.recipe.calibration.model_copy(update={"seed": seed})
        recipe = self.recipe.model_copy(update={"calibration": calibration})
        other = Texts(self.model, recipe, self.store)
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
            store=self.store,
        )


def _silent(_: str) -> None:
    """Takes notes on a text that was told of before."""


def is_drawn(settings: TextSettings) -> bool:
    """Whether the model has to write some of a text itself."""
    return any(source.drawn for source in settings.data)
