"""Windows of sampled sources for one model: written now, or read from a file."""

from collections.abc import Callable
from dataclasses import dataclass, field

from criteria.text.bos import Bos
from criteria.text.sampled.own_text import OwnText, SampleStore
from criteria.text.sampled.sample_file import read_samples
from criteria.text.sampled.settings import Sampled, SampledJson
from criteria.text.sources import Source
from experts.arrays import Ids
from experts.model import Model
from experts.notes import tell


@dataclass(frozen=True)
class SampledFromModel:
    """A `SampledText`.

    Attributes:
        model: writes the windows, or reads those of a file
        length: W, tokens per window
        seed: of the recipe's block
        bos: whether windows of start `random` have the token for the beginning in front
        store: where drawn windows are kept
        say: takes notes
    """

    model: Model
    length: int
    seed: int = 0
    bos: Bos = Bos.AUTO
    store: SampleStore = field(default_factory=SampleStore)
    say: Callable[[str], None] = tell

    def __call__(self, source: Source, count: int) -> tuple[Ids, SampledJson]:
        settings = source.sampled
        assert settings is not None, "asked for sampled sources only"
        if settings.file is not None:
            return read_samples(
                settings.file, self.model, length=self.length, count=count, seed=self.seed, say=self.say
            )
        return self.own(settings).windows(count), how_drawn(self.model, settings, count)

    def own(self, settings: Sampled) -> OwnText:
        """The text that the model writes under these settings."""
        return OwnText(self.model, settings, self.length, self.seed, self.bos, self.store)

    def check(self, source: Source) -> None:
        """Refuse a sampled source that cannot be drawn here; nothing is drawn."""
        if source.sampled is not None and source.drawn:
            self.own(source.sampled).check()


def how_drawn(model: Model, settings: Sampled, count: int) -> SampledJson:
    """What results say of windows that a model wrote now."""
    return {
        "windows": count,
        "start": settings.start.value,
        "temperature": settings.temperature,
        "seed": settings.seed,
        "model": model.fingerprint,
    }
