"""The texts that plans are chosen by, refitted on and judged on, by their short names."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import criteria
from criteria.text.sources import Source
from criteria.text.windows import Windows
from experts.model import Model

SAMPLES = "samples"  # text that the unpruned model drew itself
LENGTH = 256


def default_data() -> Path:
    """The folder of WikiText-2 and GSM8K: of EXCISE_SHARED, or beside the checkout, as in the tests."""
    return Path(os.environ.get("EXCISE_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"


@dataclass(frozen=True)
class Texts:
    """The texts of a model.

    The demo has code and prose of the standard library; wiki and maths are foreign to it. A folder of
    `benchmarks.own_models` has its own.

    Attributes:
        name: demo, or the folder
        data: folder of WikiText-2 and GSM8K, for the demo
        samples: JSON lines with `tokens`, the ids of a window
        windows: to choose or to refit by, over all texts of a name
        held_out_windows: of every domain
    """

    name: str
    data: Path
    samples: Path | None = None
    windows: int = 64
    held_out_windows: int = 32

    def calibration(self, names: str, model: Model, seed: int) -> Windows:
        """Windows of the texts joined by +, as many of each."""
        asked = names.split("+")
        real = [self._source(name, "calibration") for name in asked if name != SAMPLES]
        share = self.windows * len(real) // len(asked)
        parts = []
        if real:
            parts.append(criteria.windows(model, real, sequences=share, length=LENGTH, seed=seed))
        if SAMPLES in asked:
            parts.append(self._sampled(self.windows - share, seed))
        return parts[0] if len(parts) == 1 else joined(*parts)

    def held_out(self, model: Model) -> Windows:
        """Windows that nothing was chosen or fitted by."""
        domains = ("code", "prose", "wiki", "maths") if self.name == "demo" else ("wiki", "maths", "code")
        sources = [self._source(name, "test") for name in domains]
        return criteria.windows(model, sources, sequences=self.held_out_windows * len(domains), length=LENGTH)

    def _source(self, domain: str, split: str) -> Source:
        if self.name != "demo":
            return Source(jsonl=(Path(self.name) / "text" / f"{domain}.{split}.jsonl",), domain=domain)
        if domain == "wiki":
            name = "test.txt" if split == "test" else "valid.txt"
            return Source(text=(self.data / "wikitext-2" / name,), separator="^ = [^=]", domain=domain)
        if domain == "maths":
            name = "test.jsonl" if split == "test" else "train-head.jsonl"
            return Source(jsonl=(self.data / "gsm8k" / name,), field=("question", "answer"), domain=domain)
        return Source.model_validate({"stdlib": domain, "split": split})

    def _sampled(self, count: int, seed: int) -> Windows:
        """Drawn windows, other ones for another seed where there are enough."""
        if self.samples is None:
            raise SystemExit("samples: give --samples FILE, JSON lines with the key tokens")
        rows = [json.loads(line)["tokens"][:LENGTH] for line in self.samples.read_text().splitlines()]
        first = seed * count if (seed + 1) * count <= len(rows) else 0
        tokens = np.array(rows[first : first + count], dtype=np.int64)
        if len(tokens) < count:
            raise SystemExit(f"{self.samples}: has {len(rows)} windows, and {count} are wanted")
        number = np.arange(count)
        names = tuple(f"sample {one}" for one in number)
        return Windows(tokens, np.ones_like(tokens, dtype=bool), number, number * 0, names, (SAMPLES,))


def joined(first: Windows, second: Windows) -> Windows:
    """The windows of both; those of the second keep their documents and domains apart."""
    return Windows(
        np.concatenate([first.tokens, second.tokens]),
        np.concatenate([first.mask, second.mask]),
        np.concatenate([first.document, second.document + len(first.documents)]),
        np.concatenate([first.domain, second.domain + len(first.domains)]),
        first.documents + second.documents,
        first.domains + second.domains,
    )
