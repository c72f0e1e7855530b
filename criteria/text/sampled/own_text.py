"""Windows that a model writes itself: drawn in groups, kept as they are finished, the same every time."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from criteria.text.bos import Bos
from criteria.text.sampled.draw import continued
from criteria.text.sampled.openings import Opening, opening_of
from criteria.text.sampled.settings import GROUP, Sampled, not_here
from experts.ablation import check_untouched
from experts.arrays import Array, Ids
from experts.cache import Cache
from experts.disk.configuration import positive_int, text_config
from experts.errors import ExciseError
from experts.keys import key_of
from experts.memory import in_chunks
from experts.model import Model
from experts.stored_arrays import StoredArrays


@dataclass(frozen=True)
class SampleStore:
    """Where windows outlive the process.

    Attributes:
        cache: finished ones, for all runs
        partial: file of unfinished ones, of this run
    """

    cache: Cache | None = None
    partial: Path | None = None


@dataclass(frozen=True)
class OwnText:
    """The text that a model writes under some settings: window i is the same however many are asked for.

    Attributes:
        model: it writes, and is loaded when windows are missing
        settings: start, temperature and seed
        length: W, tokens per window
        block: seed of the recipe's block
        bos: whether windows of start `random` have the token for the beginning in front
        store: where windows are kept
        group: windows that are drawn together
    """

    model: Model
    settings: Sampled
    length: int
    block: int = 0
    bos: Bos = Bos.AUTO
    store: SampleStore = field(default_factory=SampleStore)
    group: int = GROUP

    def check(self) -> Opening:
        """Refuse what cannot be drawn, without loading the network.

        Returns:
            What windows begin with.

        Raises:
            ExciseError: the model is streamed, or its tokenizer has no such beginning.
        """
        if self.model.streamed:
            raise ExciseError(not_here(str(self.model.folder), self.model.choice.why))
        return self.opening()

    def opening(self) -> Opening:
        """What windows begin with.

        Raises:
            ExciseError: the tokenizer has no such beginning.
        """
        config = text_config(self.model.layout.checkpoint.config)
        vocabulary = positive_int(config, "vocab_size")
        opening = opening_of(self.model.tokenizer, self.settings.start, self.bos, vocabulary)
        if opening.length >= self.length:
            raise ExciseError(
                f"sampled: windows of {self.length} tokens begin with {opening.length} of the chat template; "
                "raise length"
            )
        return opening

    def windows(self, wanted: int) -> Ids:
        """Return the first windows [wanted, W], drawn or kept.

        Raises:
            ExciseError: as `check`, or the model's generation loop cannot be run.
        """
        opening = self.check()
        key = self._key(opening)
        partial = StoredArrays(self.store.partial, key)
        kept = max(self._cached(key), _tokens(partial, self.length), key=len)
        if len(kept) >= wanted:
            return kept[:wanted]
        drawn = self._drawn(opening, kept, wanted, partial)
        if self.store.cache is not None:
            tokens: Any = drawn
            self.store.cache.write(
                f"{key}.safetensors", lambda path: StoredArrays(path, key).write({"tokens": tokens})
            )
            partial.clear()
        return drawn[:wanted]

    def _key(self, opening: Opening) -> str:
        settings = self.settings
        asked = (opening.identity, settings.temperature, settings.seed, self.block, self.length, self.group)
        return key_of("sampled", self.model.identity, *asked)

    def _cached(self, key: str) -> Ids:
        def read(path: Path) -> Ids | None:
            tokens = _tokens(StoredArrays(path, key), self.length)
            return tokens if len(tokens) else None

        found = self.store.cache.read(f"{key}.safetensors", read) if self.store.cache is not None else None
        return np.empty((0, self.length), np.int64) if found is None else found

    def _drawn(self, opening: Opening, kept: Ids, wanted: int, partial: StoredArrays) -> Ids:
        """All windows up to the end of the group that the last wanted one is in."""
        check_untouched(self.model.anatomy)
        done: list[Any] = [kept]
        groups = range(len(kept) // self.group, -(-wanted // self.group))
        tokens = len(groups) * self.group * (self.length - opening.length)
        with tqdm(total=tokens, desc="sample", unit="token", unit_scale=True, delay=2) as bar:
            for group in groups:
                done.append(self._group(opening, group, bar))
                partial.write({"tokens": np.concatenate(done)})
        drawn: Ids = np.concatenate(done)
        return drawn

    def _group(self, opening: Opening, group: int, bar: "tqdm[Any]") -> Ids:
        """The windows of a group [group, W]; fewer at a time where memory runs out."""
        rows = [self._beginning(opening, group * self.group + row) for row in range(self.group)]
        first = np.stack([ids for ids, _ in rows])
        numbers = np.stack([drawn for _, drawn in rows])
        written = np.empty((self.group, self.length), np.int64)

        def write(start: int, stop: int) -> None:
            part = slice(start, stop)
            written[part] = continued(
                self.model.network, first[part], numbers[part], self.settings.temperature, bar.update
            )

        in_chunks(self.group, self.group, write, "window of the model's own text")
        return written

    def _beginning(self, opening: Opening, number: int) -> tuple[Ids, Array]:
        """First tokens of a window and random numbers of the others, of the window's own seed."""
        rng = np.random.default_rng([self.settings.seed, self.block, number])
        ids = opening.ids(rng)
        return ids, rng.random(self.length - len(ids))


def _tokens(stored: StoredArrays, length: int) -> Ids:
    """What is stored, as far as it can be used."""
    tokens = stored.read().get("tokens")
    if tokens is None or tokens.ndim != 2 or tokens.shape[1] != length:
        return np.empty((0, length), np.int64)
    return np.asarray(tokens, dtype=np.int64)
