"""Recipes: every mistake is one line that names the key and the way out."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from criteria.text.sampled.settings import Sampled
from criteria.text.sources import Source
from experts.disk.find import model_folder
from experts.disk.names import recipes_folder
from experts.errors import ExciseError
from experts.units import parse_size
from finetune.settings import TeacherSettings
from prune.recipe.read import parse_recipe, read_recipe, recipe_file
from prune.recipe.schema import (
    AuditSettings,
    CalibrationSettings,
    CompareSettings,
    FinetuneSettings,
    ProgressiveSettings,
    PruneSettings,
    Recipe,
    TaskSettings,
    TextSettings,
    ValidateSettings,
)
from prune.session.outputs import default_output

GOOD: dict[str, Any] = {
    "model": "demo",
    "calibration": {"data": {"text": ["a.txt"]}},
    "prune": {"fraction": 0.5},
    "validate": {"data": [{"stdlib": "code", "split": "test"}]},
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return path


def test_defaults_and_paths(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path))
    assert recipe.criteria == ("reap",)
    assert recipe.validation.random_plans == 20
    assert recipe.calibration.data[0].text == (tmp_path / "a.txt",)
    assert default_output("r", recipe) == Path("runs/r-reap-0.5-layer")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibratoin": {}}, r"r\.yaml: unknown key 'calibratoin'; did you mean 'calibration'\?"),
        ({"memory": {"limits": "3GB"}}, r"unknown key 'memory\.limits'; did you mean 'limit'\?"),
        ({"memory": "streamed"}, r"memory: expected keys of its own \(model, limit, spill\), got 'streamed'"),
        (
            {"memory": {"limit": 24}},
            r"memory\.limit: limit '24' has no unit; write for example 24GB or 500MiB",
        ),
        ({"memory": {"spill": 3}}, r"memory\.spill: expected the path of a file or folder, got 3"),
        ({"prune": {"fracton": 0.5}}, r"unknown key 'prune\.fracton'; did you mean 'fraction'\?"),
        (
            {"validate": {**GOOD["validate"], "random_plan": 9}},
            r"unknown key 'validate\.random_plan'; did you mean 'random_plans'\?",
        ),
        (
            {"calibration": {"data": {"txt": ["a"]}}},
            r"unknown key 'calibration\.data\.0\.txt'; did you mean 'text'\?",
        ),
        ({"zzz": {"zzz": 1}}, "unknown key 'zzz'; known here: model, dtype"),
        ({"prune": {}}, "prune: give exactly one of fraction, keep, target_size"),
        ({"prune": {"fraction": 0.5, "keep": 4}}, "prune: give exactly one of"),
        *(
            (
                {"prune": {"keep": keep}},
                r"prune\.keep: expected experts per layer \(keep: 32\), or layer: count",
            )
            for keep in ({"a": 4}, {0: -1}, {0: 4.5}, [4], True, 0, {}, "many")
        ),
        ({"prune": {"fraction": True}}, r"prune\.fraction: expected a number, got true"),
        (
            {"calibration": {**GOOD["calibration"], "sequences": False}},
            r"calibration\.sequences: expected a number, got false",
        ),
        ({"prune": {"fraction": "half"}}, r"prune\.fraction: input should be a valid number.*got 'half'"),
        (
            {"prune": {"target_size": "8 parsecs"}},
            "target_size '8 parsecs' is not a size; write for example 8GB",
        ),
        (
            {"prune": {"fraction": 0.5, "scope": "model"}},
            r"prune\.scope: input should be 'layer' or 'global', got 'model'",
        ),
        (
            {"validate": {**GOOD["validate"], "random_plans": 5}},
            r"validate\.random_plans: input should be greater than or equal to 20, got 5",
        ),
        ({"calibration": {"data": {}}}, "give exactly one of text, jsonl, dataset, stdlib"),
        (
            {"calibration": {"data": {"stdlib": "code", "split": "validation"}}},
            "stdlib needs split: train, calibration or test, got 'validation'",
        ),
        (
            {"calibration": {"data": {"text": ["a"], "separator": "("}}},
            r"separator '\(' is not a regular expression",
        ),
        ({"prune": {"fraction": 0.5, "floor": 4}}, "floor belongs to scope: global"),
        ({"calibration": {"data": []}}, r"calibration\.data: .*at least 1 item"),
        (
            {"validate": {"data": {"sampled": {}}}},
            r"validate\.data: a model judged by its own samples says nothing of real text",
        ),
        (
            {"calibration": {"data": {"sampled": {"start": "middle"}}}},
            r"calibration\.data\.0\.sampled\.start: .*'random', 'bos' or 'chat'",
        ),
        ({"calibration": {"data": {"sampled": {"temperature": 0}}}}, r"temperature: .*greater than 0"),
        ({"calibration": {"data": {"sampled": {"temp": 1}}}}, r"unknown key .*did you mean 'temperature'\?"),
        (
            {"calibration": {"data": {"sampled": {"file": "s.jsonl", "seed": 1}}}},
            "seed belongs to text that is drawn now",
        ),
        (
            {"calibration": {"data": {"sampled": {}, "text": ["a"]}}},
            "give exactly one of text, jsonl, dataset, stdlib, sampled",
        ),
    ],
)
def test_mistakes(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExciseError, match=message) as caught:
        read_recipe(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_missing_key(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: demo\n")
    with pytest.raises(ExciseError, match="calibration: field required"):
        read_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not valid YAML"),
        (b"model: demo\nmodel: demo\n", "key .model. stands twice in one table, again in line 2"),
        (b"calibration: {mix: {code: 1, code: 2}}", "key .code. stands twice in one table, again in line 1"),
        (b"\xff\xfe", r"not UTF-8 text \(byte 0\)"),
        (b"model: 2020-13-45", "not valid YAML"),
        (b"- a", "a recipe is a mapping of keys, found a list"),
        (b"", "a recipe is a mapping of keys, found nothing"),
        (b"demo", "a recipe is a mapping of keys, found one value, 'demo'"),
        (None, "no such recipe"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(ExciseError, match=message):
        read_recipe(tmp_path / "r.yaml")


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert read_recipe(path, ["prune.fraction=0.25"]).prune.fraction == 0.25
    kept = read_recipe(path, ["prune.keep=12", "criteria=[utilization, random]"])
    assert (kept.prune.keep, kept.prune.fraction, kept.criteria) == (12, None, ("utilization", "random"))
    assert read_recipe(path, ["prune.scope=global"]).prune.scope == "global"
    for bad, message in [
        ("prune.fraction", "expected key.path=value"),
        ("prune.fracton=1", "did you mean 'fraction'"),
        ("model.x=1", "model is not a table"),
    ]:
        with pytest.raises(ExciseError, match=message):
            read_recipe(path, [bad])


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("500 MiB", 500 * 2**20),
        ("1.5e9", 1_500_000_000),
        ("12345", 12345),
        ("2tb", 2 * 10**12),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_every_shipped_recipe_is_valid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXCISE_SHARED", str(tmp_path))
    files = sorted(recipes_folder().glob("*.yaml"))
    assert len(files) >= 6
    for file in files:
        assert read_recipe(file).criteria
        head = file.read_text().splitlines()[:12]
        others = {
            "demo-compare": "compare",
            "demo-scopes": "compare",
            "demo-blimp": "compare",
            "demo-causal": "compare",
        }
        command = {**others, "demo-audit": "audit", "demo-heal": "finetune"}.get(file.stem, "prune")
        for word in (f"excise {command} {file.stem}", "Hardware:", "Expect:"):
            assert any(word in line for line in head), f"{file.name} does not say {word!r} in its header"


def test_names_that_lead_nowhere() -> None:
    with pytest.raises(
        ExciseError, match=r"nope: no such recipe file, and no recipe of that name; there are .*demo"
    ):
        recipe_file("nope")
    for name in ("./nope", "/nope/nope", "nope"):
        with pytest.raises(ExciseError, match="no such model folder"):
            model_folder(name)
    with pytest.raises(ExciseError, match="owner/nope: .*(not in the local hub cache|cannot be downloaded)"):
        model_folder("owner/nope")


def test_every_key_is_documented() -> None:
    """With its meaning, word for word as the model has it."""
    text = (recipes_folder() / "README.md").read_text()
    for table in (
        Recipe,
        CalibrationSettings,
        TextSettings,
        PruneSettings,
        ValidateSettings,
        AuditSettings,
        ProgressiveSettings,
        TaskSettings,
        CompareSettings,
        FinetuneSettings,
        TeacherSettings,
        Source,
        Sampled,
    ):
        for name, field in table.model_fields.items():
            assert f"| `{field.alias or name}` |" in text
            assert (field.description or "").replace("|", "/") in text


def test_variables_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTS", str(tmp_path))
    data = {**GOOD, "calibration": {"data": {"text": ["$TEXTS/a.txt", "${TEXTS}/b.txt"]}}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(data))
    assert read_recipe(tmp_path / "r.yaml").calibration.data[0].text == (
        tmp_path / "a.txt",
        tmp_path / "b.txt",
    )
    monkeypatch.delenv("TEXTS")
    with pytest.raises(ExciseError, match="the environment variable TEXTS is not set"):
        read_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    "order", [("prune.keep=3", "prune.fraction=null"), ("prune.fraction=null", "prune.keep=3")]
)
def test_budgets_that_are_set_and_taken_away(order: tuple[str, ...]) -> None:
    assert read_recipe(recipe_file("demo"), order).prune.keep == 3


@pytest.mark.parametrize("size", ["-3GB", "0", "nan", "inf GB"])
def test_sizes_that_are_none(size: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write for example 8GB"):
        parse_size(size)


def test_sampled_text(tmp_path: Path) -> None:
    """Their windows, where all sources name them, are the block's; a file's path is made absolute."""
    named = read_recipe(write(tmp_path, calibration={"data": {"sampled": {"windows": 48}}}))
    assert named.calibration.sequences == 48
    both = [{"sampled": {"windows": 48}}, {"stdlib": "code", "split": "train"}]
    assert read_recipe(write(tmp_path, calibration={"data": both})).calibration.sequences == 128
    (tmp_path / "s.jsonl").write_text("")
    filed = read_recipe(write(tmp_path, calibration={"data": {"sampled": {"file": "s.jsonl"}}}))
    (source,) = filed.calibration.data
    assert source.sampled is not None
    assert source.sampled.file == tmp_path / "s.jsonl"
    assert not source.drawn


def test_a_kept_recipe_still_asks_for_samples(tmp_path: Path) -> None:
    """Defaults are not written down; an empty table is."""
    recipe = read_recipe(write(tmp_path, calibration={"data": {"sampled": {}}}))
    kept = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    assert kept["calibration"]["data"] == [{"sampled": {}}]
    assert parse_recipe(kept, "kept", tmp_path) == recipe
