"""Build the demo's lm-eval task from its own test text: choose the true continuation among four.

    python recipes/demo/make_task.py

writes tasks/continuation.jsonl beside this file. The same Python gives the same items.
"""

import json
import re
from pathlib import Path

import numpy as np

from criteria.text.standard_library import Domain, documents

ITEMS = 400  # half prose, half code, alternating
CONTEXT, CONTINUATION = 96, 40
PER_DOCUMENT = 12  # at most, so that many documents take part


def pieces(text: str) -> list[tuple[str, str]]:
    """(context, continuation) pairs of a document, one after the other; both end where a word ends."""
    found, at = [], 0
    gaps = [match.start() for match in re.finditer(r"(?<=\w)\s", text)]
    while True:
        cut = next((gap for gap in gaps if gap >= at + CONTEXT), None)
        end = cut is not None and next((gap for gap in gaps if gap >= cut + CONTINUATION), None)
        if not cut or not end:
            return found
        found.append((text[at:cut], text[cut:end]))
        at = end


def items(domain: Domain, rng: np.random.Generator) -> list[dict[str, object]]:
    """Items of one domain in random order; the false choices come from other documents of the domain."""
    cut = {name: pieces(text) for name, text in documents(domain, "test")}
    found: list[dict[str, object]] = []
    for name, own in cut.items():
        foreign = [
            continuation for other, theirs in cut.items() if other != name for _, continuation in theirs
        ]
        for number in rng.permutation(len(own))[:PER_DOCUMENT]:
            context, true = own[number]
            answer = int(rng.integers(4))
            choices = [foreign[i] for i in rng.choice(len(foreign), 3, replace=False)]
            choices.insert(answer, true)
            found.append(
                {"document": name, "domain": domain, "context": context, "choices": choices, "answer": answer}
            )
    return [found[i] for i in rng.permutation(len(found))]


def main() -> None:
    rng = np.random.default_rng(0)
    both = [items(domain, rng)[: ITEMS // 2] for domain in ("code", "prose")]
    mixed = [
        item for pair in zip(*both, strict=True) for item in pair
    ]  # shuffled, so that the first n items are a sample too
    path = Path(__file__).parent / "tasks" / "continuation.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in mixed), encoding="utf-8")
    print(f"{path}: {len(mixed)} items from {len({item['document'] for item in mixed})} documents")


if __name__ == "__main__":
    main()
