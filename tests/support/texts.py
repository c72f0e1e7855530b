"""Random words as text files."""

from pathlib import Path

import numpy as np

DOCUMENTS = r"(?<=\n)\n"  # separator of the documents below


def write_words(path: Path, count: int, rng: np.random.Generator, document: int = 90) -> None:
    """Random words of six letters, as many a document."""
    words = ["".join(chr(97 + i) for i in rng.integers(0, 26, 6)) for _ in range(count)]
    documents = [" ".join(words[i : i + document]) for i in range(0, count, document)]
    path.write_text("\n\n".join(documents))
