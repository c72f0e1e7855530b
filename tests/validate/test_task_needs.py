"""What tasks and tokenizers lack is asked before the work: consent to run code, an end of text, a vocabulary
that fits.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from experts.anatomy import dissect
from experts.errors import ExciseError
from experts.loading import load_network, load_tokenizer
from tests.support import tiny
from tests.support.counting import counted
from tests.support.recipes import execute, invoke
from tests.support.tasks import task_file, writing_task
from validate.task_needs import ALLOWED, check_tasks, check_tokenizer, refusal_of_code
from validate.tasks import Benchmark


def without_tokens(source: Path, target: Path, *names: str) -> Path:
    """The same model with a tokenizer that lacks special tokens."""
    shutil.copytree(source, target)
    path = target / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in settings.items() if key not in names}))
    return target


def test_code_that_a_model_writes_is_run_with_consent_only(
    recipe_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Refused before anything is calibrated, with the key; with the key it runs."""
    calls = counted(monkeypatch)
    folder = writing_task(tmp_path / "tasks", unsafe_code=True)
    tasks = f"validate.tasks={{names: [guess], include: {folder}, limit: 8, random_plans: 5}}"
    with pytest.raises(
        ExciseError, match=r"guess runs code .* set validate\.tasks\.confirm_unsafe_code=true"
    ):
        execute(recipe_path, tmp_path / "run", tasks)
    assert sum(calls.values()) == 0
    assert not (tmp_path / "run").exists()
    monkeypatch.delenv(ALLOWED, raising=False)
    result = execute(recipe_path, tmp_path / "run", tasks, "validate.tasks.confirm_unsafe_code=true")
    assert result["plans"][0]["tasks"][0]["name"] == "guess"


def test_a_metric_that_asks_for_consent_names_our_key() -> None:
    """The metric of humaneval and mbpp refuses when the task is loaded, with thirty lines and a variable of
    its own.
    """
    said = f'The "code_eval" metric executes untrusted code ...\n set {ALLOWED}="1"'
    assert "confirm_unsafe_code=true" in refusal_of_code(said)
    assert refusal_of_code("no such file") == ""


def test_tasks_with_images_are_refused() -> None:
    with pytest.raises(ExciseError, match="mmmu shows images or sound"):
        check_tasks({"mmmu": SimpleNamespace(MULTIMODAL=True)}, confirmed=True)


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("generate_until", "no eos_token"), ("multiple_choice", "neither bos_token nor eos_token")],
)
def test_a_tokenizer_without_end_of_text(
    kind: str, missing: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    """Found when the tasks are read; lm-eval would fail at the first request, after the calibration."""
    tokenizer = load_tokenizer(without_tokens(saved["olmoe"], tmp_path / "model", "eos_token", "bos_token"))
    assert tokenizer.eos_token_id is None
    folder = writing_task(tmp_path / "tasks") if kind == "generate_until" else task_file(tmp_path / "tasks")
    benchmark = Benchmark(("guess",), folder, 4, None)
    with pytest.raises(ExciseError, match=missing):
        check_tokenizer(benchmark.tasks, tokenizer, "model")
    check_tokenizer(benchmark.tasks, tiny.tokenizer(), "model")


def test_a_tokenizer_without_end_of_text_stops_a_run_before_the_work(
    recipe_path: Path,
    tmp_path: Path,
    saved: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, folder = counted(monkeypatch), writing_task(tmp_path / "tasks")
    model = without_tokens(saved["olmoe"], tmp_path / "model", "eos_token")
    with pytest.raises(ExciseError, match="has no eos_token; add it to tokenizer_config.json"):
        execute(
            recipe_path,
            tmp_path / "run",
            f"model={model}",
            f"validate.tasks={{names: [guess], include: {folder}}}",
        )
    assert sum(calls.values()) == 0


@pytest.mark.slow
def test_answers_belong_to_a_tokenizer_and_its_generation_settings(
    recipe_path: Path,
    tmp_path: Path,
    saved: dict[str, Path],
) -> None:
    """Rows of items are found again for the same tokenizer only: another one asks other prompts."""
    model = shutil.copytree(saved["olmoe"], tmp_path / "model")
    include = task_file(tmp_path / "tasks")
    tasks = f"validate.tasks={{names: [guess], include: {include}, limit: 12, random_plans: 5}}"
    keys = []
    for change in ({}, {"repetition_penalty": 3.0}):
        path = model / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        execute(recipe_path, tmp_path / "run", f"model={model}", tasks)
        keys.append(
            {line.partition(",")[0] for line in (tmp_path / "run" / "items.csv").read_text().splitlines()[1:]}
        )
    assert all(len(found) == 1 for found in keys)
    assert keys[0] != keys[1]


# Tokenizers of other models.


def test_a_tokenizer_that_reads_nothing_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    """transformers makes an empty tokenizer of the model's class where it does not know a file."""
    model = shutil.copytree(saved["olmoe"], tmp_path / "model")
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    (model / "vocab.txt").write_text("a\ntext\n")
    with pytest.raises(ExciseError, match=r"make an empty \w+, which reads no text"):
        load_tokenizer(model)


@pytest.mark.parametrize("command", ["prune", "effects"])
def test_a_larger_vocabulary_than_the_models(
    command: str,
    recipe_path: Path,
    tmp_path: Path,
) -> None:
    """The embedding would be read behind its end."""
    model = tiny.build("olmoe", vocab_size=64)  # bytes go to 255
    assert dissect(model).shape.num_experts == 8
    folder = tiny.save(model, tmp_path / "small")
    if command == "prune":
        data = yaml.safe_load(recipe_path.read_text()) | {"model": str(folder)}
        recipe_path.write_text(yaml.safe_dump(data))
        found = invoke("prune", recipe_path, "-o", tmp_path / "run")
    else:
        found = invoke(
            "effects", folder, "--text", tmp_path / "test.txt", "-o", tmp_path / "e.csv", "--window", 24
        )
    assert found.exit_code == 1
    assert "config.json says vocab_size = 64: it belongs to another model" in found.stderr


def test_settings_of_generate_that_lm_eval_cannot_give(
    recipe_path: Path,
    tmp_path: Path,
    saved: dict[str, Path],
) -> None:
    """Ways to search are not taken over; token ids, and what changes the scores of tokens, are."""
    model = shutil.copytree(saved["olmoe"], tmp_path / "model")
    path = model / "generation_config.json"
    before = json.loads(path.read_text())
    odd = {
        "stop_strings": ["zz"],
        "num_beams": 4,
        "num_beam_groups": 2,
        "diversity_penalty": 0.5,
        "penalty_alpha": 0.6,
        "top_k": 4,
    }
    path.write_text(
        json.dumps({**before, **odd, "cache_implementation": "quantized", "repetition_penalty": 1.3})
    )
    settings = load_network(model).generation_config
    assert settings.repetition_penalty == 1.3
    assert settings.eos_token_id == before["eos_token_id"]
    assert not settings.stop_strings
    folder = writing_task(tmp_path / "tasks")
    tasks = f"validate.tasks={{names: [guess], include: {folder}, limit: 8, random_plans: 5}}"
    result = execute(recipe_path, tmp_path / "run", f"model={model}", tasks)
    assert result["plans"][0]["tasks"][0]["name"] == "guess"
