"""lm-eval on the model in memory: no export, no reload, one score per item. The same items for every plan."""

import contextlib
import copy
import difflib
import hashlib
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lm_eval import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from criteria.statistics import Array
from experts.anatomy import Anatomy
from experts.errors import ExciseError, let_through, one_line
from validate.rows import Evaluator
from validate.task_needs import allow_code, check_tasks, refusal_of_code

SEED = 1234  # of the few-shot examples, lm-eval's own
PREFERRED = ("acc", "exact_match")  # of several metrics; else the first that has a number per item


@dataclass(frozen=True)
class Part:
    """The items of one task: rows start to stop of an evaluator's values."""

    task: str
    metric: str
    start: int
    stop: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def items(self) -> int:
        return self.stop - self.start


class Benchmark:
    """Tasks by name, with their items. limit: the first items of each; fewshot: None = what the task says.

    include: folder of task files; data: where their relative data_files start, None = in that folder; template: the
    chat template that writes the prompts, empty = none; confirmed: code that the model writes may be run. Raises
    ExciseError for what lm-eval does not know, cannot read or would refuse.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        include: Path | None,
        limit: int | None,
        fewshot: int | None,
        data: Path | None = None,
        template: str = "",
        confirmed: bool = False,
    ) -> None:
        for library in ("lm_eval", "huggingface_hub", "datasets"):
            logging.getLogger(library).setLevel(logging.ERROR)
        self.limit, self.template, self.confirmed = limit, template, confirmed
        allow_code(confirmed)
        if include is not None:
            include = include.absolute()
            _check_files(include)
        manager = _manager(names, include)
        where = data or include or Path()
        if not where.is_dir():
            raise ExciseError(f"validate.tasks.data: {where} is not a folder")
        with _quiet(), contextlib.chdir(where):
            self.loaded = _load(manager, list(names))
        self.tasks: dict[str, Any] = self.loaded["tasks"]
        check_tasks(self.tasks, confirmed)
        if fewshot is not None:
            for task in self.tasks.values():
                task.set_config("num_fewshot", fewshot)

    @cached_property
    def parts(self) -> list[Part]:
        """Where each task's items are."""
        found, start = [], 0
        for name, task in self.tasks.items():
            items = sum(1 for _ in task.doc_iterator(limit=self.limit))
            found.append(Part(name, _metric(name, task), start, start + items))
            start += items
        return found

    @cached_property
    def hash(self) -> str:
        """Identity of everything that is asked: items, prompts, examples."""
        asked: list[Any] = [self.template] if self.template else []
        for task in self.tasks.values():
            config = task.dump_config()
            metadata = {
                name: value
                for name, value in (config.get("metadata") or {}).items()
                if name != "config_source"
            }  # where, not what
            asked.append(
                ({**config, "metadata": metadata}, [doc for _, doc in task.doc_iterator(limit=self.limit)])
            )
        return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def scores(self, model: Any, tokenizer: Any, batch: int) -> Array:
        """Every item's score, task after task [N]; higher = better."""
        with _quiet():
            for task in self.tasks.values():
                task.set_fewshot_seed(SEED)  # every time anew: the same examples for every plan
            # Half precision would round log-likelihoods of whole continuations to ties.
            tokenizer = self._with_template(tokenizer)
            lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, softmax_dtype="float32")
            options: dict[str, Any] = {"limit": self.limit, "bootstrap_iters": 0, "log_samples": True}
            options["confirm_run_unsafe_code"] = self.confirmed
            if self.template:
                options |= {"apply_chat_template": True, "fewshot_as_multiturn": True}
            try:
                samples = evaluate(lm, self.loaded, **options)["samples"]
            except Exception as error:
                let_through(error)
                what = (
                    f"{', '.join(self.tasks)} cannot be evaluated ({type(error).__name__}: {one_line(error)})"
                )
                raise ExciseError(f"validate.tasks: {what}") from error
        return np.concatenate([self._of(part, samples[part.task]) for part in self.parts])

    def _with_template(self, tokenizer: Any) -> Any:
        """lm-eval asks the tokenizer for its own template, whatever name it is given."""
        if not self.template:
            return tokenizer
        chosen = copy.copy(tokenizer)
        chosen.chat_template = self.template
        return chosen

    def _of(self, part: Part, samples: list[dict[str, Any]]) -> Array:
        first = samples[0]["filter"]  # of several ways to read an answer, the task's first
        by_item = {sample["doc_id"]: sample[part.metric] for sample in samples if sample["filter"] == first}
        values = np.array([float(by_item[item]) for item in sorted(by_item)])
        return values if self.tasks[part.task].higher_is_better().get(part.metric, True) else -values


class ItemEvaluator(Evaluator):
    """The score of every item of a benchmark under a plan."""

    value, columns = "score", ("task", "metric", "item")

    def __init__(
        self, anatomy: Anatomy, benchmark: Benchmark, tokenizer: Any, path: Path, key: str, batch: int = 16
    ) -> None:
        self.tokenizer, self.benchmark, self.batch = tokenizer, benchmark, batch
        labels = [(part.task, part.metric, item) for part in benchmark.parts for item in range(part.items)]
        super().__init__(anatomy, path, key, labels)

    def measure(self, anatomy: Anatomy) -> Array:
        return self.benchmark.scores(anatomy.model, self.tokenizer, self.batch)


def _check_files(folder: Path) -> None:
    """lm-eval leaves out files it cannot parse without a word."""
    if not folder.is_dir():
        raise ExciseError(f"validate.tasks.include: {folder} is not a folder")
    files = sorted(folder.rglob("*.yaml"))
    if not files:
        raise ExciseError(f"validate.tasks.include: no task file (*.yaml) in {folder}")
    for file in files:
        try:
            found = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a safe loader
        except (yaml.YAMLError, ValueError) as error:
            raise ExciseError(f"{file}: not a task file: {' '.join(str(error).split())}") from error
        if not isinstance(found, dict):
            raise ExciseError(
                f"{file}: not a task file: a mapping of keys is expected, found {type(found).__name__}"
            )
        if "task" in found and not found.keys() & {
            "group",
            "include",
            "class",
            "dataset_path",
            "custom_dataset",
        }:
            raise ExciseError(f"{file}: not a task file: it names no dataset_path, so there are no items")


class _Loader(yaml.SafeLoader):
    """Reads task files without running what they name with `!function`."""


_Loader.add_constructor("!function", lambda _, node: node.value)


def _manager(names: tuple[str, ...], include: Path | None) -> TaskManager:
    """Knows all the names. lm-eval's own thousands of tasks are indexed only if one of them is asked for."""
    if include is not None:
        own = TaskManager(include_path=str(include), include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    manager = TaskManager(include_path=str(include) if include else None)
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise ExciseError(f"validate.tasks.names: lm-eval knows no task {name!r}; {hint}")
    return manager


def _cause(error: BaseException) -> str:
    """The message, and that of what it came from: datasets says what is wrong only there."""
    inner = error.__cause__ or error.__context__
    return one_line(error) + (
        f" ({one_line(inner)})" if inner is not None and one_line(inner) not in one_line(error) else ""
    )


def _load(manager: TaskManager, names: list[str]) -> Any:
    try:
        return manager.load(names)
    except Exception as error:
        let_through(error)
        files = [
            str(entry.yaml_path)
            for name in names
            if (entry := manager.task_index.get(name)) and entry.yaml_path
        ]
        where = f" ({', '.join(files)})" if files else ""
        if refusal := refusal_of_code(str(error)):
            raise ExciseError(
                f"validate.tasks: {', '.join(names)}{where} cannot be loaded: {refusal}"
            ) from error
        raise ExciseError(
            f"validate.tasks: {', '.join(names)}{where} cannot be loaded: {type(error).__name__}: {_cause(error)}"
        ) from error


def _metric(name: str, task: Any) -> str:
    """The metric that is compared. Raises ExciseError for tasks without a number per item (perplexities of whole documents)."""
    known = list(task.higher_is_better())
    if task.OUTPUT_TYPE in ("loglikelihood_rolling",) or not known:
        raise ExciseError(
            f"validate.tasks: {name} has no score per item ({task.OUTPUT_TYPE}); losses of text belong in validate.data"
        )
    return next((metric for metric in PREFERRED if metric in known), known[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval and datasets draw bars of their own for every plan."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
