"""The public Python API: what is in it, how it is called, that its examples run, and that its errors are one
line.
"""

import ast
import doctest
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import criteria
import experts
import finetune
import prune
import validate
from criteria.scores import save
from experts import ExciseError
from experts.anatomy import Anatomy
from experts.disk.companions import RECOVERY
from experts.disk.names import recipes_folder
from finetune.results import RecoveryJson, TrainingJson
from prune.typed_json import problems
from tests.support.demo import demo_of
from tests.support.inputs import windows
from validate import measured_removals
from validate.chance import contest_of

PACKAGES = (experts, criteria, validate, finetune, prune)
FUNCTIONS = {
    "experts": ("load", "restricted", "ablated"),
    "criteria": ("windows", "sampled", "score", "select", "budget_for"),
    "validate": ("against_random", "audit", "effects"),
    "finetune": ("allocate", "recover", "refit_against_random", "refit_experts", "refitted"),
    "prune": ("export",),
}
PUBLIC = [(package, name) for package, names in FUNCTIONS.items() for name in names]
DEMO = recipes_folder() / "demo" / "model"


@pytest.fixture(scope="module", autouse=True)
def _demo_in_float32(wide_demo: Path) -> Iterator[None]:
    with demo_of(wide_demo):
        yield


def function(package: str, name: str) -> object:
    return getattr(importlib.import_module(package), name)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_the_list_of_names_is_the_one_for_type_checkers(package: object) -> None:
    """Names are imported at their first use; a type checker reads them in a block of its own.

    Both are one list.
    """
    source = inspect.getsource(package)  # type: ignore[arg-type]
    typed = set(re.findall(r"^    from [\w.]+ import \w+ as (\w+)$", source, re.MULTILINE))
    assert typed == set(package._PUBLIC) == set(package.__all__)  # type: ignore[attr-defined]
    assert typed <= set(dir(package))
    assert (Path(package.__file__).parent / "py.typed").is_file()  # type: ignore[attr-defined]


def test_importing_takes_no_torch() -> None:
    code = "import sys, experts, criteria, validate, finetune, prune; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'prune' has no attribute 'exprot'"):
        _ = prune.exprot  # type: ignore[attr-defined]


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_from_the_third_argument_on_keywords(package: str, name: str) -> None:
    """`audit`, `against_random`, `recover` and `export` take model, plan or scores, and text or folder by
    position.
    """
    parameters = inspect.signature(function(package, name)).parameters.values()  # type: ignore[arg-type]
    positional = [one for one in parameters if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert all(one.default is inspect.Parameter.empty or one.name == "source" for one in positional)
    assert len(positional) <= 3


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_docstrings_say_what_a_caller_needs(package: str, name: str) -> None:
    """Every parameter has its line; errors are named."""
    found = function(package, name)
    text = inspect.getdoc(found) or ""
    for parameter in inspect.signature(found).parameters.values():  # type: ignore[arg-type]
        stars = "\\*\\*" if parameter.kind is inspect.Parameter.VAR_KEYWORD else ""
        assert re.search(rf"^    {stars}{parameter.name}: ", text, re.MULTILINE), parameter.name
    assert "Raises:" in text


@pytest.mark.slow
@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_examples_run(package: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = function(package, name)
    module = sys.modules[inspect.unwrap(found).__module__]  # type: ignore[arg-type]
    tests = doctest.DocTestFinder(recurse=False).find(inspect.unwrap(found), name, module=module)  # type: ignore[arg-type]
    assert tests[0].examples, "no example"
    result = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(tests[0])
    assert result.failed == 0


# The ten lines, and what they promise.


@pytest.fixture(scope="module")
def model() -> experts.Model:
    return experts.load("demo")


@pytest.fixture(scope="module")
def text(model: experts.Model) -> criteria.Windows:
    return criteria.windows(model, stdlib="code", split="calibration", sequences=8, length=64)


@pytest.fixture(scope="module")
def held_out(model: experts.Model) -> criteria.Windows:
    return criteria.windows(model, stdlib="code", split="test", sequences=8, length=64)


@pytest.mark.slow
def test_the_ten_lines_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are printed there, on less text."""
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    short = block.replace("sequences=64, length=256", "sequences=8, length=64")
    assert short != block
    names: dict[str, object] = {}
    exec(compile(short, "README.md", "exec"), names)
    result = names["result"]
    assert result.verdict in ("beats random", "not distinguishable", "worse than random")  # type: ignore[attr-defined]
    assert experts.load(tmp_path / "pruned").shape.num_experts == 8


def test_a_model_tells_what_it_is(model: experts.Model) -> None:
    assert (model.shape.num_layers, model.shape.num_experts, model.shape.top_k) == (6, 16, 4)
    assert "6 MoE layers of 16 experts, top-4, on cpu" in repr(model)
    assert model.generate("def ", max_new_tokens=3)
    assert model.is_loaded


def test_an_unloaded_model_loads_again() -> None:
    model = experts.load("demo")
    before = model.generate("def ", max_new_tokens=3)
    model.unload()
    assert not model.is_loaded
    assert model.generate("def ", max_new_tokens=3) == before


def test_several_criteria_from_one_pass(model: experts.Model, text: criteria.Windows) -> None:
    one = criteria.score(model, "reap", text)
    both = criteria.score(model, ["reap", "random"], text)
    assert [scores.criterion for scores in both] == ["reap", "random"]
    np.testing.assert_array_equal(both[0].values, one.values)
    assert both[0].digest == one.digest


def test_a_plan_knows_its_reverse(model: experts.Model, text: criteria.Windows) -> None:
    plan = criteria.select(criteria.score(model, "reap", text), keep=8)
    assert plan.reverse is not None
    assert not set(plan.kept[0]) & set(plan.reverse.kept[0])
    assert criteria.select(criteria.score(model, "reap", text), target_size="24MB").total < 96


@pytest.mark.slow
def test_a_plan_by_hand_has_no_reverse(model: experts.Model, held_out: criteria.Windows) -> None:
    plan = experts.Plan(16, {layer: tuple(range(8)) for layer in model.shape.layers})
    result = validate.against_random(model, plan, held_out, plans=5)
    assert result.to_json()["reversed_delta"] is None
    assert result.verdict == "not distinguishable"


@pytest.mark.slow
def test_a_recovery_and_its_checkpoint(
    model: experts.Model, text: criteria.Windows, held_out: criteria.Windows, tmp_path: Path
) -> None:
    """Inside the block the model is the recovered one, afterwards it is whole again."""
    plan = criteria.select(criteria.score(model, "reap", text), fraction=0.5)
    before = model.generate("def ", max_new_tokens=5)
    with finetune.recover(model, plan, text, held_out=held_out, steps=2, batch=4) as recovered:
        inside = model.generate("def ", max_new_tokens=5)
        prune.export(model, plan, tmp_path / "recovered", recovered=recovered)
    assert len(recovered.curve) >= 2
    assert recovered.weights
    provenance = json.loads((tmp_path / "recovered" / RECOVERY).read_text())
    assert not list(problems(provenance, RecoveryJson))
    assert provenance["training"].keys() == TrainingJson.__annotations__.keys()
    assert provenance["training"]["text"] == text.summary()
    assert provenance["training"]["teacher"] == {"model": model.name, "keep": "memory", "top_k": None}
    assert model.generate("def ", max_new_tokens=5) == before
    assert experts.load(tmp_path / "recovered").generate("def ", max_new_tokens=5) == inside


@pytest.mark.slow
def test_a_recovery_is_exported_for_its_own_plan_alone(
    model: experts.Model, text: criteria.Windows, held_out: criteria.Windows, tmp_path: Path
) -> None:
    """And after its block it is written as inside."""
    plan = half(model)
    upper = experts.Plan(16, {layer: tuple(range(8, 16)) for layer in model.shape.layers})
    with finetune.recover(model, plan, text, held_out=held_out, steps=1, batch=2) as recovered:
        with pytest.raises(ExciseError, match="trained for another plan .* export recovered.plan"):
            prune.export(model, upper, tmp_path / "wrong", recovered=recovered)
        prune.export(model, plan, tmp_path / "inside", recovered=recovered)
    prune.export(model, plan, tmp_path / "after", recovered=recovered)
    written = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("inside", "after")]
    assert written[0] == written[1]
    stranger = replace(recovered, fingerprint="another")
    with pytest.raises(ExciseError, match="its weights are of another model"):
        prune.export(model, plan, tmp_path / "wrong", recovered=stranger)
    assert not (tmp_path / "wrong").exists()


def test_a_plan_says_what_it_was_made_by(model: experts.Model, text: criteria.Windows) -> None:
    """Scope and formula of a verdict are those of the plan."""
    scores = ranked(model, text)
    plan = criteria.select(scores, fraction=0.5, scope="global")
    contest = contest_of(plan, model.shape, plans=2, seed=0)
    assert (contest.scope, contest.formula) == ("global", scores.formula)
    assert plan.seen is not None
    np.testing.assert_array_equal(plan.seen, text.tokens)
    assert experts.Plan.from_json(plan.to_json()) == plan, "nothing of it is stored"


@pytest.mark.slow
def test_mode_mean_takes_the_means_of_the_calibration_text(
    model: experts.Model,
    text: criteria.Windows,
    held_out: criteria.Windows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `excise audit` does."""
    read, original = [], measured_removals.mean_outputs

    def recording(anatomy: Anatomy, tokens: torch.Tensor) -> torch.Tensor:
        read.append(tokens.cpu().numpy())
        return original(anatomy, tokens)

    monkeypatch.setattr(measured_removals, "mean_outputs", recording)
    validate.audit(model, ranked(model, text), held_out, positions=5, layers=[0], mode="mean")
    validate.audit(model, by_hand(model), held_out, positions=5, layers=[0], mode="mean", means_of=held_out)
    np.testing.assert_array_equal(read[0], text.tokens)
    np.testing.assert_array_equal(read[1], held_out.tokens)


@pytest.mark.slow
def test_a_search_is_given_its_budget(model: experts.Model) -> None:
    text = criteria.windows(model, stdlib="code", split="calibration", sequences=1, length=16)
    budget = criteria.budget_for(model, keep=15)
    scores = criteria.score(model, "causal_greedy", text, budget=budget)
    assert criteria.select(scores, budget=budget).total == budget.total == 90


def test_scores_of_a_run_serve_other_budgets(
    model: experts.Model, text: criteria.Windows, tmp_path: Path
) -> None:
    scores = ranked(model, text)
    save(tmp_path / "scores.safetensors", [scores])
    read = criteria.Scores.read(str(tmp_path / "scores.safetensors"), model, criterion="reap")
    assert criteria.select(read, keep=4).kept == criteria.select(scores, keep=4).kept


@pytest.mark.parametrize(
    ("shared", "public", "command"),
    [
        ("score", "criteria.ranking", "prune.session.session"),
        ("select", "criteria.ranking", "prune.session.allocations"),  # of prune and compare
        ("select", "criteria.ranking", "prune.compare.stability"),
        ("budget_for", "criteria.ranking", "prune.recipe.budget"),
        ("plans_against_random", "validate.chance", "prune.run.plan_tests"),
        ("plans_against_random", "validate.chance", "prune.compare.comparison"),
        ("measure_removals", "validate.removals", "prune.audit.tokens"),
        ("measure_removals", "validate.removals", "prune.effects.measurement"),
        ("pick_pairs", "validate.removals", "prune.audit.tokens"),
        ("recovered_model", "finetune.recover_model", "prune.recover.recovery"),
        ("trained_weights", "prune.checkpoint.export_model", "prune.recover.recovered_folder"),
    ],
)
def test_commands_and_api_call_the_same_functions(shared: str, public: str, command: str) -> None:
    assert function(public, shared) is function(command, shared)


def test_no_command_goes_below_them() -> None:
    """What only the shared functions call has no other caller in prune."""
    below = {"plan_for", "evidence_of", "with_verdicts", "contest_of", "measure_effects", "recovered"}
    for file in Path(prune.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not below & {alias.name for alias in node.names}, file


# Errors.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: experts.load("nowhere"), "nowhere: no such model folder"),
        (lambda m, t: criteria.windows(m, "nowhere.txt"), r"nowhere\.txt"),
        (lambda m, t: criteria.windows(m), "give exactly one of text, jsonl, dataset, stdlib"),
        (lambda m, t: criteria.windows(m, "a.txt", stdlib="code"), "a source or keys of one, not both"),
        (
            lambda m, t: criteria.windows(m, stdlib="code", split="test", bos="yes"),
            "bos 'yes': expected one of",
        ),
        (
            lambda m, t: criteria.windows(m, stdlib="code", spilt="test"),
            "source: unknown key 'spilt'; did you mean 'split'",
        ),
        (lambda m, t: criteria.score(m, "raep", t), "did you mean"),
        (lambda m, t: criteria.select(criteria.score(m, "reap", t)), "give exactly one of fraction, keep"),
        (lambda m, t: criteria.select(criteria.score(m, "reap", t), keep=3), "top_k = 4"),
        (
            lambda m, t: criteria.select(criteria.score(m, "reap", t), target_size="big"),
            "'big' is not a size",
        ),
        (lambda m, t: validate.effects(m, t, layers=[9]), "layer 9 is dense or absent"),
        (lambda m, t: validate.effects(m, t, scope="here"), "scope 'here': expected one of position"),
        (
            lambda m, t: validate.audit(m, by_hand(m), t, positions=10**6),
            "the validation text has",
        ),
        (lambda m, t: experts.ablated(m, {0: [16]}).__enter__(), "expert 16 is out of range"),
        (
            lambda m, t: experts.ablated(m, {0: [1]}, mode="gone").__enter__(),
            "mode 'gone': expected one of zero",
        ),
        (lambda m, t: prune.export(m, experts.Plan(8, {0: (0, 1)}), "out"), "plan for another model"),
        (lambda m, t: criteria.select(by_hand(m), fraction=0.5), "these scores know no model"),
        # Arguments of another kind.
        (lambda m, t: finetune.refit_experts("demo", half(m), t), "model: expected a model of"),
        (lambda m, t: finetune.allocate("demo", by_hand(m), t, budget=None), "model: expected a model of"),
        (lambda m, t: experts.Plan.read("plan.json"), "plan.json: no such plan file"),
        (lambda m, t: experts.Plan.read(5), "path: expected the path of a plan.json, got 5"),
        (lambda m, t: experts.load("demo", device="foo"), "device 'foo': expected cpu, cuda"),
        (
            lambda m, t: experts.load("demo", dtype="float99"),
            "dtype 'float99': expected one of auto, float32",
        ),
        (
            lambda m, t: experts.restricted(m, "plan.json").__enter__(),
            "plan: expected a plan of .*'plan.json'",
        ),
        (
            lambda m, t: experts.restricted("demo", half(m)).__enter__(),
            "model: expected a model of experts.load",
        ),
        (lambda m, t: criteria.windows(m, 5), "source: expected a path, .* got 5"),
        (lambda m, t: criteria.windows(m, stdlib="code", split="test", sequences=-4), "sequences is -4"),
        (lambda m, t: criteria.score(m, "reap", "text"), "text: expected token windows .* got 'text'"),
        (
            lambda m, t: criteria.score(m, "reap", t, batch=0),
            "batch is 0; it is a whole number of at least 1",
        ),
        (
            lambda m, t: criteria.score(m, "reap", t, budget=0.5),
            "budget: expected a budget of criteria.budget_for",
        ),
        (
            lambda m, t: criteria.score(m, "reap", t, protect="nonsense"),
            "protect 'nonsense': expected one of auto",
        ),
        (
            lambda m, t: criteria.score(m, "causal_greedy", t),
            r"give budget=criteria\.budget_for\(model, fraction",
        ),
        (
            lambda m, t: criteria.select([ranked(m, t)], keep=8),
            "scores: expected the scores of one criterion",
        ),
        (lambda m, t: criteria.select(ranked(m, t), keep="x"), "keep is 'x'; it is a whole number"),
        (lambda m, t: criteria.select(ranked(m, t), fraction=2), "^fraction is 2; it is the share"),
        (lambda m, t: criteria.select(ranked(m, t), keep=8, multiple_of=0), "multiple_of is 0"),
        (
            lambda m, t: criteria.select(ranked(m, t), keep=8, scope="Layer"),
            "scope 'Layer': expected one of layer",
        ),
        (
            lambda m, t: criteria.select(ranked(m, t), keep=8, budget=criteria.budget_for(m, keep=8)),
            "give a budget, or one of fraction, keep, target_size",
        ),
        (lambda m, t: validate.effects(m, t, experts=[16]), "experts: 16 is out of range"),
        (lambda m, t: validate.against_random(m, half(m), t, batch=-1), "batch is -1"),
        (lambda m, t: finetune.recover(m, half(m), t, held_out=other(m), batch=0).__enter__(), "batch is 0"),
        (
            lambda m, t: finetune.recover(m, half(m), t, held_out=other(m), rank=0).__enter__(),
            "recover: rank: Input should be greater than 0",
        ),
        (
            lambda m, t: finetune.recover(m, half(m), t, held_out=other(m), targets="attn").__enter__(),
            "^targets: 'attn' matches nothing",
        ),
        (lambda m, t: criteria.sampled(m, windows=0), "windows is 0; it is a whole number of at least 1"),
        (lambda m, t: criteria.sampled(m, start="middle"), "start 'middle': expected one of random"),
        (
            lambda m, t: validate.against_random(m, half(m), replace(t, sampled=({"windows": 1},))),
            "text: some of its windows were sampled from a model",
        ),
        # Text that was seen.
        (
            lambda m, t: validate.against_random(m, criteria.select(ranked(m, t), keep=8), t),
            "calibration and validation text overlap: 8 of 8",
        ),
        (
            lambda m, t: validate.audit(m, ranked(m, t), t, positions=20),
            "calibration and validation text overlap",
        ),
        (
            lambda m, t: finetune.recover(m, half(m), t, held_out=t).__enter__(),
            "training and validation text overlap",
        ),
        (
            lambda m, t: finetune.recover(
                m, criteria.select(ranked(m, t), keep=8), other(m), held_out=t
            ).__enter__(),
            "calibration and validation text overlap",
        ),
        (
            lambda m, t: validate.audit(m, by_hand(m), t, positions=20, mode="mean"),
            "mode mean needs means_of",
        ),
    ],
)
def test_errors_are_one_line(
    call: object,
    message: str,
    model: experts.Model,
    text: criteria.Windows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path / "here"  # not beside the cache, which the model's first fingerprint makes
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(ExciseError, match=message) as found:
        call(model, text)  # type: ignore[operator]
    assert "\n" not in str(found.value)
    assert not list(here.iterdir())


def ranked(model: experts.Model, text: criteria.Windows) -> criteria.Scores:
    return criteria.score(model, "reap", text)


def by_hand(model: experts.Model) -> criteria.Scores:
    """Scores that know no model and no text."""
    shape = model.shape
    values = np.arange(float(shape.total)).reshape(shape.num_layers, shape.num_experts)
    return criteria.Scores(values, values < 0, shape.layers, "mine", "by hand")


def half(model: experts.Model) -> experts.Plan:
    return experts.Plan(16, {layer: tuple(range(8)) for layer in model.shape.layers})


def other(model: experts.Model) -> criteria.Windows:
    return criteria.windows(model, stdlib="code", split="test", sequences=4, length=64)


def test_numbers_and_arrays_of_numpy_are_numbers_and_lists(
    model: experts.Model, text: criteria.Windows
) -> None:
    scores = criteria.score(model, "reap", text, batch=np.int64(4))  # type: ignore[call-overload]
    plan = criteria.select(scores, keep=np.int64(8))  # type: ignore[arg-type]
    assert plan.total == criteria.select(scores, fraction=np.float32(0.5)).total  # type: ignore[arg-type]
    with experts.ablated(model, {0: np.array([3, 5])}):  # type: ignore[dict-item]
        assert model.generate("def ", max_new_tokens=1)


def test_windows_made_by_hand_are_windows(model: experts.Model) -> None:
    """Text that the reader does not know can be given as tokens."""
    scores = criteria.score(model, "reap", windows(4, 16))
    assert scores.values.shape == (6, 16)
