"""An lm-eval task of thirty items, written beside a recipe."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ITEMS = [
    {"context": f"{a} and {b}", "choices": [f" is {c}" for c in others], "answer": (a + b) % 3}
    for a, b, *others in np.random.default_rng(0).integers(100, 1000, (30, 5)).tolist()
]


def task_file(folder: Path, name: str = "guess", **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)))
    task: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | changes))
    return folder


def writing_task(folder: Path, **changes: Any) -> Path:
    """A task that has the model write; `doc_to_target` is compared with what it wrote."""
    metrics = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    generation = {"max_gen_toks": 3, "until": ["\n"], "do_sample": False}
    return task_file(
        folder, output_type="generate_until", generation_kwargs=generation, metric_list=metrics, **changes
    )
