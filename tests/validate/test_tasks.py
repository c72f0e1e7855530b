"""lm-eval in process: scores against log-likelihoods worked out by hand, the same items for every plan, files
and names that are wrong.
"""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from experts.ablation import restricted
from experts.anatomy import Anatomy, dissect
from experts.disk.names import recipes_folder
from experts.errors import ExciseError
from experts.plan import Plan
from tests.support import tiny
from tests.support.inputs import uniform_plan
from tests.support.one_by_one import one_by_one
from tests.support.tasks import ITEMS, task_file
from validate.task_answers import Questions, answers_under
from validate.tasks import Benchmark, ItemEvaluator


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return dissect(tiny.build("olmoe"))


def by_hand(anatomy: Anatomy) -> list[float]:
    """1 where the right choice has the largest sum of log-probabilities after the context."""
    tokenizer, found = tiny.tokenizer(), []
    for item in ITEMS:
        context, sums = tokenizer(item["context"])["input_ids"], []
        for choice in item["choices"]:
            ids = tokenizer(item["context"] + choice)["input_ids"]
            with torch.no_grad():
                logp = torch.log_softmax(anatomy.model(torch.tensor([ids])).logits[0].double(), dim=-1)
            sums.append(sum(float(logp[t - 1, ids[t]]) for t in range(len(context), len(ids))))
        found.append(float(np.argmax(sums) == item["answer"]))
    return found


def test_scores_are_those_of_the_model_in_memory(anatomy: Anatomy, tmp_path: Path) -> None:
    """Also of a restricted one, bit by bit the model that is written; and afterwards of the whole
    one again.
    """
    benchmark, plan = (
        Benchmark(("guess",), task_file(tmp_path / "tasks"), None, None),
        uniform_plan((0, 1, 2), (0, 2, 3, 5)),
    )
    evaluator = ItemEvaluator(benchmark, tiny.tokenizer(), tmp_path / "items.csv", "k", 8)
    for measured in (None, plan):
        evaluator.measure_plans([measured], anatomy)
    whole, pruned = evaluator.values(None), evaluator.values(plan)
    assert whole.tolist() == by_hand(anatomy)
    with restricted(anatomy, plan):
        assert pruned.tolist() == by_hand(anatomy)
    assert not np.array_equal(whole, pruned)
    assert 0 < whole.mean() < 1
    assert [(part.task, part.metric, part.items) for part in benchmark.parts] == [("guess", "acc", 30)]
    assert benchmark.scores(anatomy.model, tiny.tokenizer(), 3).tolist() == whole.tolist(), (
        "the batch does not matter"
    )


def test_items_are_kept(anatomy: Anatomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = Benchmark(("guess",), task_file(tmp_path / "tasks"), None, None)
    first = ItemEvaluator(benchmark, tiny.tokenizer(), tmp_path / "items.csv", "k")
    first.measure_plans([None], anatomy)
    monkeypatch.setattr(Benchmark, "scores_under", lambda *_: pytest.fail("measured again"))
    again = ItemEvaluator(benchmark, tiny.tokenizer(), tmp_path / "items.csv", "k")
    again.measure_plans([None], anatomy)
    np.testing.assert_array_equal(again.values(None), first.values(None))
    another = ItemEvaluator(benchmark, tiny.tokenizer(), tmp_path / "items.csv", "another model")
    with pytest.raises(pytest.fail.Exception):
        another.measure_plans([None], anatomy)


def test_one_sweep_gives_the_scores_of_whole_forwards(anatomy: Anatomy, tmp_path: Path) -> None:
    """All plans together, with all weights in memory and layer by layer: lm-eval's own answers."""
    task_file(tmp_path / "tasks")
    benchmark = Benchmark(("guess",), tmp_path / "tasks", None, None)
    plans = [None, *(uniform_plan((0, 1, 2), kept) for kept in ((0, 2, 3, 5), (1, 4, 6, 7)))]
    whole = []
    for plan in plans:
        with restricted(anatomy, plan) if plan else nullcontext():
            whole.append(answers_of_whole_forwards(anatomy, benchmark))
    questions = Questions(anatomy.model, tiny.tokenizer(), 4)
    benchmark._scored(questions)
    for found in (anatomy, one_by_one(anatomy)):
        assert answers_under(found, questions, plans) == whole


def answers_of_whole_forwards(anatomy: Anatomy, benchmark: Benchmark) -> list[tuple[float, bool]]:
    """What lm-eval's model answers to all questions of a benchmark."""
    answers: list[tuple[float, bool]] = []

    class Noting(HFLM):
        def _loglikelihood_tokens(self, *args: Any, **named: Any) -> Any:
            answers.extend(super()._loglikelihood_tokens(*args, **named))
            return answers

    lm = Noting(pretrained=anatomy.model, tokenizer=tiny.tokenizer(), batch_size=4, softmax_dtype="float32")
    benchmark._scored(lm)
    return answers


def test_several_tasks_and_a_limit(anatomy: Anatomy, tmp_path: Path) -> None:
    """Rows stand task after task; a limit takes the first items."""
    task_file(tmp_path / "tasks")
    task_file(
        tmp_path / "tasks",
        "backwards",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": False}],
    )
    both = Benchmark(("guess", "backwards"), tmp_path / "tasks", 10, None)
    scores = both.scores(anatomy.model, tiny.tokenizer(), 8)
    assert [(part.task, part.start, part.stop) for part in both.parts] == [
        ("guess", 0, 10),
        ("backwards", 10, 20),
    ]
    np.testing.assert_array_equal(scores[:10], by_hand(anatomy)[:10])
    np.testing.assert_array_equal(scores[10:], -scores[:10], "a metric where less is better is turned round")


def test_identity_follows_the_items(tmp_path: Path) -> None:
    folder = task_file(tmp_path / "tasks")
    before = Benchmark(("guess",), folder, None, None).hash
    assert Benchmark(("guess",), folder, None, None).hash == before
    assert Benchmark(("guess",), task_file(tmp_path / "elsewhere"), None, None).hash == before, (
        "where the file lies is not what it asks"
    )
    assert Benchmark(("guess",), folder, 5, None).hash != before
    task_file(tmp_path / "tasks", doc_to_text="Well, {{context}}")
    assert Benchmark(("guess",), folder, None, None).hash != before


def test_few_shot_examples_are_the_same_for_every_plan(anatomy: Anatomy, tmp_path: Path) -> None:
    folder = task_file(tmp_path / "tasks", fewshot_split="test")
    benchmark = Benchmark(("guess",), folder, 6, 2)
    seen: list[list[str]] = []
    for _ in range(2):
        benchmark.scores(anatomy.model, tiny.tokenizer(), 8)
        seen.append([instance.args[0] for instance in benchmark.tasks["guess"].instances])
    assert seen[0] == seen[1]
    assert all(prompt.count(" and ") == 3 for prompt in seen[0]), "two examples and the item"


# What is refused.


@pytest.mark.slow
def test_unknown_names_get_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match=r"lm-eval knows no task 'helaswag'; did you mean hellaswag"):
        Benchmark(("helaswag",), None, None, None)
    with pytest.raises(ExciseError, match=r"lm-eval knows no task 'gues'; did you mean guess"):
        Benchmark(("gues",), task_file(tmp_path / "tasks"), None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [", r"broken\.yaml: not a task file: .*line 1"),
        ("- a\n- b", r"broken\.yaml: not a task file: a mapping of keys is expected, found list"),
        ("task: hollow", r"broken\.yaml: not a task file: it names no dataset_path"),
        ("task: !!python/object:os.system x", r"broken\.yaml: not a task file"),
    ],
)
def test_task_files_that_do_not_parse(text: str, message: str, tmp_path: Path) -> None:
    """lm-eval itself leaves them out without a word."""
    folder = task_file(tmp_path / "tasks")
    (folder / "broken.yaml").write_text(text)
    with pytest.raises(ExciseError, match=message):
        Benchmark(("guess",), folder, None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset_kwargs": {"data_files": {"test": "nothing.jsonl"}}},
            r"guess\.yaml\) cannot be loaded: FileNotFoundError.*nothing\.jsonl",
        ),
        ({"output_type": "riddle"}, r"guess\.yaml\) cannot be loaded: .*riddle"),
        ({"test_split": "train"}, r"guess\.yaml\) cannot be loaded: KeyError"),
        (
            {"doc_to_text": "{{nokey"},
            r"guess\.yaml\) cannot be loaded: TemplateSyntaxError: unexpected end of template",
        ),
    ],
)
def test_tasks_that_cannot_be_built(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match=message):
        _ = Benchmark(("guess",), task_file(tmp_path / "tasks", **changes), None, None).parts


def test_damaged_items(tmp_path: Path) -> None:
    folder = task_file(tmp_path / "tasks")
    (folder / "items.jsonl").write_text('{"context": "a", "choices": ["b"], "answer": 0}\n{broken\n')
    with pytest.raises(ExciseError, match=r"guess\.yaml\) cannot be loaded: .*JSON"):
        Benchmark(("guess",), folder, None, None)


def test_tasks_without_items_to_compare(tmp_path: Path) -> None:
    folder = task_file(
        tmp_path / "tasks", output_type="loglikelihood_rolling", metric_list=None, doc_to_target="{{context}}"
    )
    with pytest.raises(
        ExciseError,
        match=(
            r"guess has no score per item \(loglikelihood_rolling\); "
            r"losses of text belong in validate\.data"
        ),
    ):
        _ = Benchmark(("guess",), folder, None, None).parts


def test_folders_without_tasks(tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="is not a folder"):
        Benchmark(("guess",), tmp_path / "nowhere", None, None)
    with pytest.raises(ExciseError, match="no task file"):
        Benchmark(("guess",), tmp_path, None, None)


# The task of the demo.


def test_the_demo_ships_a_task() -> None:
    """400 items of four choices, half code and half prose, all from documents of the test split."""
    from criteria.text.standard_library import split_of

    lines = (
        (recipes_folder() / "demo" / "tasks" / "continuation.jsonl").read_text(encoding="utf-8").splitlines()
    )
    items = [json.loads(line) for line in lines]
    assert len(items) == 400
    assert {split_of(item["document"]) for item in items} == {"test"}
    assert [item["domain"] for item in items[:4]] == ["code", "prose", "code", "prose"]
    assert all(len(item["choices"]) == 4 for item in items)
    answers = np.bincount([item["answer"] for item in items], minlength=4)
    assert answers.min() > 70, "the place of the answer tells nothing"
    benchmark = Benchmark(("demo_continuation",), recipes_folder() / "demo" / "tasks", 160, None)
    assert [(part.metric, part.items) for part in benchmark.parts] == [("acc", 160)]


def test_a_plan_without_rows_has_no_values(tmp_path: Path) -> None:
    benchmark = Benchmark(("guess",), task_file(tmp_path / "tasks"), None, None)
    evaluator = ItemEvaluator(benchmark, None, tmp_path / "items.csv", "k")
    with pytest.raises(LookupError, match="no rows of 'mine': it was not measured"):
        evaluator.values(Plan(8, {0: (0, 1, 2)}, criterion="mine"))
