"""The public Python API: what is in it, how it is called, that its examples run, and that its errors are one
line.
"""

import doctest
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import criteria
import experts
import finetune
import prune
import validate
from experts import ExciseError
from experts.disk.companions import RECOVERY
from experts.disk.names import recipes_folder
from finetune.results import RecoveryJson, TrainingJson
from prune.typed_json import problems
from tests.support.inputs import windows

PACKAGES = (experts, criteria, validate, finetune, prune)
FUNCTIONS = {
    "experts": ("load", "restricted", "ablated"),
    "criteria": ("windows", "score", "select"),
    "validate": ("against_random", "audit", "effects"),
    "finetune": ("recover",),
    "prune": ("export",),
}
PUBLIC = [(package, name) for package, names in FUNCTIONS.items() for name in names]
DEMO = recipes_folder() / "demo" / "model"


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
@pytest.mark.parametrize(("package", "name"), [one for one in PUBLIC if one != ("finetune", "recover")])
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
    assert criteria.select(criteria.score(model, "reap", text), target_size="12MB").total < 96


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
        (lambda m, t: criteria.windows(m, stdlib="code", splt="test"), "source: splt: "),
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
            lambda m, t: validate.audit(m, criteria.score(m, "reap", t), t, positions=10**6),
            "the validation text has",
        ),
        (lambda m, t: experts.ablated(m, {0: [16]}).__enter__(), "expert 16 is out of range"),
        (
            lambda m, t: experts.ablated(m, {0: [1]}, mode="gone").__enter__(),
            "mode 'gone': expected one of zero",
        ),
        (lambda m, t: prune.export(m, experts.Plan(8, {0: (0, 1)}), "out"), "plan for another model"),
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
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExciseError, match=message) as found:
        call(model, text)  # type: ignore[operator]
    assert "\n" not in str(found.value)
    assert not list(tmp_path.iterdir())


def test_windows_made_by_hand_are_windows(model: experts.Model) -> None:
    """Text that the reader does not know can be given as tokens."""
    scores = criteria.score(model, "reap", windows(4, 16))
    assert scores.values.shape == (6, 16)
