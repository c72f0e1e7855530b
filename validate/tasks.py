"""lm-eval on the model in memory: no export, no reload, one score per item, the same items for every plan."""

import copy
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import evaluate
from lm_eval.models.huggingface import HFLM

from experts.ablation import restricted
from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.errors import ExciseError, let_through, one_line
from experts.plan import Plan
from validate.rows import Evaluator
from validate.task_answers import Questions, answers_under
from validate.task_loading import check_task_files, load_tasks, manager_for, quiet
from validate.task_needs import GENERATES, allow_code, check_tasks

SEED = 1234  # of the few-shot examples, lm-eval's own
PREFERRED = ("acc", "exact_match")  # of several metrics; else the first that has a number per item
WITHOUT_ITEMS = "loglikelihood_rolling"  # perplexities of whole documents


@dataclass(frozen=True)
class TaskPart:
    """The items of one task among those of a benchmark.

    Attributes:
        task: name of the task
        metric: the metric that is compared
        start: first of its rows in an evaluator's values
        stop: the row after its last one
    """

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
    """Tasks by name, with their items.

    Attributes:
        tasks: lm-eval's tasks by name
        limit: the first items of each task are asked; None = all
        template: chat template that writes the prompts; empty = none
        confirmed: whether code that the model writes may be run
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
        """Load the tasks.

        Args:
            names: of tasks
            include: folder of task files; None = lm-eval's own tasks
            limit: how many items of each task are asked; None = all
            fewshot: examples in a prompt; None = what the task says
            data: where relative `data_files` of the task files start; None = in `include`
            template: chat template that writes the prompts; empty = none
            confirmed: whether code that the model writes may be run

        Raises:
            ExciseError: for what lm-eval does not know, cannot read or would refuse.
        """
        _silence_libraries()
        self.limit, self.template, self.confirmed = limit, template, confirmed
        allow_code(confirmed)
        if include is not None:
            include = include.absolute()
            check_task_files(include)
        manager = manager_for(names, include)
        self.loaded = load_tasks(manager, list(names), _data_folder(data, include))
        self.tasks: dict[str, Any] = self.loaded["tasks"]
        check_tasks(self.tasks, confirmed)
        if fewshot is not None:
            for task in self.tasks.values():
                task.set_config("num_fewshot", fewshot)

    @cached_property
    def parts(self) -> list[TaskPart]:
        """Where each task's items are."""
        parts, start = [], 0
        for name, task in self.tasks.items():
            stop = start + sum(1 for _ in task.doc_iterator(limit=self.limit))
            parts.append(TaskPart(name, _metric(name, task), start, stop))
            start = stop
        return parts

    @cached_property
    def hash(self) -> str:
        """Identity of everything that is asked: items, prompts, examples."""
        asked: list[Any] = [self.template] if self.template else []
        for task in self.tasks.values():
            items = [item for _, item in task.doc_iterator(limit=self.limit)]
            asked.append((_config_of(task), items))
        content = json.dumps(asked, sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def scores(self, model: Any, tokenizer: Any, batch: int) -> Array:
        """Return every item's score, task after task [N]; higher = better.

        Args:
            model: as it is now
            tokenizer: of the model
            batch: prompts per forward

        Raises:
            ExciseError: if lm-eval fails.
        """
        # Half precision would round log-likelihoods of whole continuations to ties.
        lm = HFLM(
            pretrained=model,
            tokenizer=self._with_template(tokenizer),
            batch_size=batch,
            softmax_dtype="float32",
        )
        return self._scored(lm)

    def scores_under(
        self, anatomy: Anatomy, tokenizer: Any, batch: int, plans: Sequence[Plan | None]
    ) -> Iterator[Array]:
        """Yield every item's score [N] under every plan, from one sweep over the layers.

        For tasks of log-likelihood kind alone; the scores are those of `scores`.

        Args:
            anatomy: the unpruned model
            tokenizer: of the model
            batch: prompts per forward
            plans: what is kept of the model; None = the unpruned model
        """
        with quiet():
            questions = Questions(anatomy.model, self._with_template(tokenizer), batch)
        self._scored(questions)
        for answers in answers_under(anatomy, questions, plans):
            yield self._scored(questions.answering(answers))

    @property
    def generates(self) -> list[str]:
        """Tasks in which the model writes text."""
        return [name for name, task in self.tasks.items() if task.OUTPUT_TYPE == GENERATES]

    def _scored(self, lm: HFLM) -> Array:
        """Every item's score, task after task [N]."""
        with quiet():
            for task in self.tasks.values():
                task.set_fewshot_seed(SEED)  # every time anew: the same examples for every plan
            samples = self._evaluated(lm)
        return np.concatenate([self._of(part, samples[part.task]) for part in self.parts])

    def _evaluated(self, lm: HFLM) -> dict[str, list[dict[str, Any]]]:
        """lm-eval's samples by task."""
        options: dict[str, Any] = {"limit": self.limit, "bootstrap_iters": 0, "log_samples": True}
        options["confirm_run_unsafe_code"] = self.confirmed
        if self.template:
            options |= {"apply_chat_template": True, "fewshot_as_multiturn": True}
        try:
            samples: dict[str, list[dict[str, Any]]] = evaluate(lm, self.loaded, **options)["samples"]
        except Exception as error:
            let_through(error)
            cause = f"{type(error).__name__}: {one_line(error)}"
            raise ExciseError(
                f"validate.tasks: {', '.join(self.tasks)} cannot be evaluated ({cause})"
            ) from error
        return samples

    def _with_template(self, tokenizer: Any) -> Any:
        """lm-eval asks the tokenizer for its own template, whatever name it is given."""
        if not self.template:
            return tokenizer
        with_template = copy.copy(tokenizer)
        with_template.chat_template = self.template
        return with_template

    def _of(self, part: TaskPart, samples: list[dict[str, Any]]) -> Array:
        """Every item's score [items]; higher = better."""
        first = samples[0]["filter"]  # of several ways to read an answer, the task's first
        by_item = {sample["doc_id"]: sample[part.metric] for sample in samples if sample["filter"] == first}
        scores = np.array([float(by_item[item]) for item in sorted(by_item)])
        higher_is_better = self.tasks[part.task].higher_is_better().get(part.metric, True)
        return scores if higher_is_better else -scores


class ItemEvaluator(Evaluator):
    """The score of every item of a benchmark under a plan.

    Attributes:
        benchmark: the tasks
        tokenizer: of the model
        batch: prompts per forward
    """

    value = "score"
    columns = ("task", "metric", "item")

    def __init__(
        self,
        benchmark: Benchmark,
        tokenizer: Any,
        path: Path | None = None,
        key: str = "",
        batch: int = 16,
    ) -> None:
        self.tokenizer, self.benchmark, self.batch = tokenizer, benchmark, batch
        labels: list[tuple[object, ...]] = []
        for part in benchmark.parts:
            labels += [(part.task, part.metric, item) for item in range(part.items)]
        super().__init__(labels, path, key)

    def measure(self, anatomy: Anatomy, plans: Sequence[Plan | None]) -> Iterator[Array]:
        if not self.benchmark.generates:
            left, at_once = list(plans), len(plans) if anatomy.weights.streamed else anatomy.team.size
            while left:
                together, left = left[:at_once], left[at_once:]
                yield from self.benchmark.scores_under(anatomy, self.tokenizer, self.batch, together)
            return
        if anatomy.weights.streamed:
            names = ", ".join(self.benchmark.generates)
            raise ExciseError(
                f"validate.tasks: in {names} the model writes text, which needs the whole model in memory, "
                "and it is streamed; leave such tasks out, or use a machine where the model fits"
            )
        for plan in plans:
            with restricted(anatomy, plan) if plan else nullcontext():
                scores = self.benchmark.scores(anatomy.model, self.tokenizer, self.batch)
            yield scores


def _silence_libraries() -> None:
    """Below errors, what lm-eval loads with says nothing that a user can act on."""
    for library in ("lm_eval", "huggingface_hub", "datasets"):
        logging.getLogger(library).setLevel(logging.ERROR)


def _data_folder(data: Path | None, include: Path | None) -> Path:
    """Where relative data files of tasks start."""
    folder = data or include or Path()
    if not folder.is_dir():
        raise ExciseError(f"validate.tasks.data: {folder} is not a folder")
    return folder


def _config_of(task: Any) -> dict[str, Any]:
    """A task's configuration, without the place where its file lies."""
    config: dict[str, Any] = task.dump_config()
    metadata = config.get("metadata") or {}
    what = {name: value for name, value in metadata.items() if name != "config_source"}
    return {**config, "metadata": what}


def _metric(name: str, task: Any) -> str:
    """The metric that is compared.

    Raises:
        ExciseError: for tasks without a number per item.
    """
    known = list(task.higher_is_better())
    if task.OUTPUT_TYPE == WITHOUT_ITEMS or not known:
        raise ExciseError(
            f"validate.tasks: {name} has no score per item ({task.OUTPUT_TYPE}); losses of text belong in "
            "validate.data"
        )
    return next((metric for metric in PREFERRED if metric in known), known[0])
