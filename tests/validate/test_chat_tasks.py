"""lm-eval's prompts as conversations: scores by hand, the named template, examples as turns, identity."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from criteria.text.chat_template import ChatTemplate
from experts.anatomy import Anatomy, dissect
from experts.errors import ExciseError
from prune.recipe.read import parse_recipe
from prune.session.prepare import prepare
from prune.session.session import Session
from tests.support import talking, tiny
from tests.support.tasks import ITEMS, task_file
from validate.tasks import Benchmark

FEW = 12  # items
TERSE = "{% for m in messages %}{{ m['content'] }}/{% endfor %}"


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return dissect(tiny.build("olmoe"))


def benchmark(
    folder: Path, template: str, limit: int | None = None, shots: int | None = None, **task: Any
) -> Benchmark:
    return Benchmark(("guess",), task_file(folder / "tasks", **task), limit, shots, None, template)


def by_hand(anatomy: Anatomy, before: str, behind: str) -> list[float]:
    """1 where the right choice has the largest sum of log-probabilities after the prompt, and nothing before
    it.
    """
    tokenizer, found = tiny.tokenizer(), []
    for item in ITEMS[:FEW]:
        sums = []
        prompt = f"{before}{item['context']}{behind}"
        context = talking.tokenizer(begins=False)(prompt)["input_ids"]
        for choice in item["choices"]:
            ids = context + tokenizer(choice)["input_ids"]
            with torch.no_grad():
                logp = torch.log_softmax(anatomy.model(torch.tensor([ids])).logits[0].double(), dim=-1)
            sums.append(sum(float(logp[t - 1, ids[t]]) for t in range(len(context), len(ids))))
        found.append(float(np.argmax(sums) == item["answer"]))
    return found


def test_scores_are_those_of_the_templates_prompts(anatomy: Anatomy, tmp_path: Path) -> None:
    """One beginning of the text, the template's; a named template writes other prompts; the tokenizer stays
    as it was.
    """
    tokenizer = talking.tokenizer({"default": talking.STRICT, "terse": "{{ bos_token }}" + TERSE})
    strict, terse = (ChatTemplate(tokenizer, choice).check() for choice in (True, "terse"))
    found = benchmark(tmp_path, strict, FEW).scores(anatomy.model, tokenizer, 8)
    assert found.tolist() == by_hand(anatomy, "<bos><user>", "")
    found = benchmark(tmp_path, terse, FEW).scores(anatomy.model, tokenizer, 8)
    assert found.tolist() == by_hand(anatomy, "<bos>", "/")
    assert isinstance(tokenizer.chat_template, dict)


def test_examples_are_turns(anatomy: Anatomy, tmp_path: Path) -> None:
    """So that templates which want the roles to take turns can write them."""
    asked = benchmark(tmp_path, talking.STRICT, 6, 2, fewshot_split="test")
    asked.scores(anatomy.model, talking.tokenizer(talking.STRICT), 8)
    prompts = [instance.args[0] for instance in asked.tasks["guess"].instances]
    counts = {tuple(prompt.count(f"<{role}>") for role in ("user", "assistant", "bos")) for prompt in prompts}
    assert counts == {(3, 2, 1)}


def test_identity_follows_the_template(tmp_path: Path) -> None:
    """Scores of other prompts are never taken for these."""
    hashes = [benchmark(tmp_path, template).hash for template in ("", talking.STRICT, TERSE, TERSE)]
    assert len(set(hashes)) == 3
    assert hashes[2] == hashes[3]
    assert hashes[0] == Benchmark(("guess",), tmp_path / "tasks", None, None).hash


def test_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of a recipe reaches lm-eval; what the tokenizer cannot do is refused before any
    item is asked.
    """
    model = tiny.save(tiny.build("olmoe"), tmp_path / "model")
    (tmp_path / "a.txt").write_text("abcdefgh" * 30)
    text = {"data": {"text": str(tmp_path / "a.txt")}, "sequences": 1, "length": 20}

    def session(choice: Any) -> Session:
        tasks = {"names": "guess", "include": str(task_file(tmp_path / "tasks")), "chat_template": choice}
        recipe = {
            "model": str(model),
            "calibration": text,
            "prune": {"fraction": 0.5},
            "validate": {**text, "tasks": tasks},
        }
        return Session(prepare(parse_recipe(recipe, "recipe", tmp_path), tmp_path / "run"))

    with pytest.raises(
        ExciseError, match=r"validate\.tasks\.chat_template: the tokenizer has no chat template"
    ):
        _ = session(True).benchmark
    templates = {"default": talking.STRICT, "terse": TERSE, "mute": "{{ raise_exception('no') }}"}
    talking.tokenizer(templates).save_pretrained(model)
    assert session(True).benchmark.template == talking.STRICT
    assert session("terse").benchmark.template == TERSE
    assert session(False).benchmark.template == ""
    with pytest.raises(
        ExciseError,
        match=(
            r"validate\.tasks\.chat_template: the tokenizer has no template "
            r"'verbose'; it has default, mute, terse"
        ),
    ):
        _ = session("verbose").benchmark
    with pytest.raises(
        ExciseError,
        match=r"validate\.tasks\.chat_template: the chat template cannot write .*\(TemplateError: no\)",
    ):
        _ = session("mute").benchmark
