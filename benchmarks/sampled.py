"""Whose text? The demo chosen and refitted on its own samples, or on calibration text; the rise by domain.

    python -m benchmarks.sampled [--criterion reap_sum --fraction 0.5 --held-out 32 --randoms 2 --data FOLDER]
        [--text NAME …]

NAME is calibration, mixed, or START:TEMPERATURE:WINDOWS like random:1:64. Every text chooses a plan, and the
plan is refitted on it. Measured is the rise of the held-out loss over the unpruned model's, in nats per
token: on the demo's own domains (code, prose), and on files of FOLDER that nothing was fitted to. Random
plans of the same size are refitted on the first text.
"""

import argparse
import json
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

import criteria
import experts
import finetune
from criteria.text.windows import Windows
from experts.arrays import Array
from experts.model import Model
from experts.plan import Plan
from validate.draw import random_plans
from validate.loss import window_losses
from validate.rows import LossEvaluator

LENGTH = 256
TEXTS = (
    "random:1:64",
    "calibration",
    "mixed",
    "bos:1:64",
    "random:0.7:64",
    "random:1.3:64",
    "random:1:16",
    "random:1:192",
)
ELSEWHERE: dict[str, dict[str, Any]] = {
    "wikitext-2": {"text": "wikitext-2/test.txt"},
    "gsm8k": {"jsonl": "gsm8k/test.jsonl", "field": ["question", "answer"]},
    "humaneval": {"jsonl": "humaneval/HumanEval.jsonl", "field": ["prompt", "canonical_solution"]},
}


def text_of(model: Model, name: str) -> tuple[Windows, float]:
    """A text by its name, and the CPU seconds that it took."""
    began = time.process_time()
    if name in ("calibration", "mixed"):
        real = [{"stdlib": domain, "split": "calibration"} for domain in ("code", "prose")]
        own = [{"sampled": {}, "weight": 2}] if name == "mixed" else []
        sources = [criteria.Source.model_validate(source) for source in [*own, *real]]
        text = criteria.windows(model, sources, sequences=64, length=LENGTH)
    else:
        start, temperature, windows = name.split(":")
        text = criteria.sampled(
            model, windows=int(windows), length=LENGTH, temperature=float(temperature), start=start
        )
    return text, time.process_time() - began


class Judge:
    """Rises of the loss on held-out text, by domain.

    Attributes:
        model: the unpruned one
        texts: domain -> windows
        clean: domain -> losses of the unpruned model [N]
    """

    def __init__(self, model: Model, data: Path | None, windows: int) -> None:
        self.model = model
        sources: dict[str, dict[str, Any]] = {
            domain: {"stdlib": domain, "split": "test"} for domain in ("code", "prose")
        }
        for domain, keys in ELSEWHERE.items() if data else ():
            assert data is not None
            path = {key: data / value for key, value in keys.items() if key != "field"}
            sources[domain] = {**keys, **path}
        self.texts = {
            domain: criteria.windows(model, sequences=windows, length=LENGTH, **keys)
            for domain, keys in sources.items()
        }
        self.clean = {domain: self._losses(text) for domain, text in self.texts.items()}

    def rises(self) -> dict[str, float]:
        """Of the model as it is now."""
        return {
            domain: round(self._mean(domain, self._losses(text)), 3) for domain, text in self.texts.items()
        }

    def _losses(self, text: Windows) -> Array:
        return window_losses(self.model.network, text)

    def _mean(self, domain: str, losses: Array) -> float:
        weights = LossEvaluator(self.texts[domain]).weights
        return float(np.average(losses - self.clean[domain], weights=weights))

    def before_and_after(self, plan: Plan, text: Windows) -> dict[str, Any]:
        """Of a plan, before and after its refit on a text."""
        with experts.restricted(self.model, plan):
            before = self.rises()
        began = time.process_time()
        refit = finetune.refit_experts(self.model, plan, text)
        seconds = time.process_time() - began
        with finetune.refitted(self.model, refit):
            after = self.rises()
        return {"before": before, "after": after, "cpu_seconds_refit": round(seconds, 1)}


def measure(options: Namespace) -> dict[str, Any]:
    """Every text, and random plans refitted on the first one."""
    model = experts.load("demo", memory="resident", dtype="float32")
    judge = Judge(model, options.data, options.held_out)
    found: dict[str, Any] = {}
    for number, name in enumerate(options.text):
        text, seconds = text_of(model, name)
        scores = criteria.score(model, options.criterion, text)
        plan = criteria.select(scores, fraction=options.fraction)
        row = {"cpu_seconds_text": round(seconds, 1), **judge.before_and_after(plan, text)}
        found[name] = row
        print(json.dumps({name: row}), flush=True)
        if number == 0:
            nothing = np.zeros((model.shape.num_layers, model.shape.num_experts), dtype=bool)
            for draw, other in enumerate(random_plans(plan, model.shape, nothing, options.randoms, seed=0)):
                control = f"random plan {draw} on {name}"
                found[control] = judge.before_and_after(other, text)
                print(json.dumps({control: found[control]}), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--criterion", default="reap_sum")
    parser.add_argument("--fraction", type=float, default=0.5)
    parser.add_argument("--held-out", type=int, default=32)
    parser.add_argument("--randoms", type=int, default=2)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--text", nargs="+", default=list(TEXTS))
    options = parser.parse_args()
    print(json.dumps({"benchmark": "sampled", **vars(options), "found": measure(options)}, default=str))


if __name__ == "__main__":
    main()
