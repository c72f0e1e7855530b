"""The documentation holds: links lead somewhere, commands parse, recipes are valid, code runs, every key and
option is there.
"""

import ast
import csv
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from criteria.by_name import resolve
from criteria.registry import CRITERIA
from criteria.statistics import Statistics
from experts.disk.companions import PLAN, RECOVERY
from experts.disk.find import model_folder
from finetune.results import RecoveryJson
from prune.audit.result import AuditResult
from prune.compare.result import ComparisonResult
from prune.console.cli import app
from prune.console.criteria_listing import CriterionJson
from prune.doctor.result import DoctorResult
from prune.forecast.result import ForecastJson
from prune.inspect import InspectResult
from prune.recipe.read import parse_recipe
from prune.recover.result import RecoveryResult
from prune.run.result import PruneResult, ValidationResult
from prune.typed_json import problems
from tests.support.code_map import with_map
from tests.support.markdown import Block, anchors, blocks, links, spans
from tests.support.typed_keys import typed_keys

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
OTHERS = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md", "ARCHITECTURES.md")
]
PAGES = [*DOCS, *OTHERS, ROOT / "recipes" / "README.md"]
PACKAGES = ("experts", "criteria", "validate", "finetune", "prune")
FOLDERS = (*PACKAGES, "benchmarks", "docs", "recipes", "tests", ".ci")
BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language in ("bash", "console")]
CHEAP = {("inspect", "demo"), ("criteria",)}


def excise(line: str) -> list[str] | None:
    """The arguments of an `excise` command, also behind settings of the environment; None for any other
    command.
    """
    words = shlex.split(line, comments=True)
    while words and "=" in words[0]:
        words = words[1:]
    return words[1:] if words and words[0] == "excise" else None


def page(name: str) -> Path:
    return ROOT / "docs" / f"{name}.md"


# Links and paths.


@pytest.mark.parametrize("source", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(source: Path) -> None:
    for target in links(source):
        name, _, anchor = target.partition("#")
        if "://" in name:
            continue
        file = (source.parent / name).resolve() if name else source
        assert file.exists(), f"{source.name}: {target}"
        assert ROOT in (file, *file.parents), f"{source.name}: {target} leads out of the repository"
        if anchor:
            assert anchor in anchors(file), f"{source.name}: {target}"


@pytest.mark.parametrize("source", [*DOCS, *OTHERS[1:2]], ids=lambda path: path.name)
def test_paths_exist(source: Path) -> None:
    for span in spans(source):
        path = span.partition(":")[0]
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?|[\w.-]+/", path) and path.split("/")[0] in FOLDERS:
            assert (ROOT / path).exists(), f"{source.name}: {span}"


def test_index_names_every_page() -> None:
    listed = {target for target in links(page("index")) if target.endswith(".md") and "/" not in target}
    assert listed == {path.name for path in DOCS} - {"index.md"}


def test_the_map_is_that_of_the_code() -> None:
    """A line per file of every package; `python -m tests.support.code_map --write` writes it."""
    text = page("development").read_text(encoding="utf-8")
    assert with_map(text) == text


def test_cited_sections_exist() -> None:
    sections = set(re.findall(r"^##+ (\d+(?:\.\d+)?) ", page("methods").read_text(encoding="utf-8"), re.M))
    for path in (path for folder in (*PACKAGES, "tests") for path in (ROOT / folder).rglob("*.py")):
        for cited in re.findall(r"docs/methods\.md (\d+(?:\.\d+)?)", path.read_text(encoding="utf-8")):
            assert cited in sections, f"{path.relative_to(ROOT)}: docs/methods.md {cited}"


def test_picture_is_sound() -> None:
    picture = ROOT / "docs" / "flow.svg"
    root = ElementTree.parse(picture).getroot()
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for shape in root.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, w, h = (float(shape.attrib[name]) for name in ("x", "y", "width", "height"))
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
    text = picture.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"url\(|@import|href=", text), "nothing from outside"


# Commands, recipes, code.


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.place)
def test_commands_parse(block: Block) -> None:
    group: Any = typer.main.get_command(app)
    for line in block.commands:
        if arguments := excise(line):
            context = group.context_class(group, info_name="excise")
            name, command, rest = group.resolve_command(context, arguments)
            assert command is not None
            command.make_context(name, rest, parent=context)


@pytest.mark.parametrize(
    "block", [block for block in SHELL if block.page in DOCS], ids=lambda block: block.place
)
def test_commands_run_or_say_why_not(block: Block) -> None:
    for line in block.commands:
        arguments = excise(line)
        if arguments is not None and tuple(arguments) in CHEAP:
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
            if block.output and not block.reason:
                assert [line for line in result.output.splitlines() if line.strip()] == block.output
        else:
            assert block.reason, f"{block.place}: {line!r} is not run and does not say why"


BASE = {
    "model": "demo",
    "calibration": {"data": {"stdlib": "code", "split": "calibration"}},
    "prune": {"fraction": 0.5},
    "validate": {"data": {"stdlib": "code", "split": "test"}},
}


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "yaml"], ids=lambda block: block.place
)
def test_recipes_are_valid(block: Block, tmp_path: Path) -> None:
    data = yaml.safe_load(block.text)
    recipe = parse_recipe(data if "model" in data else {**BASE, **data}, block.place, tmp_path)
    for name in recipe.criteria:
        if ".py" not in name:
            resolve(name)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory that holds what the tutorial made before its code."""
    from experts.disk.layout import lay_out
    from experts.disk.shards import open_checkpoint
    from experts.plan import Plan
    from prune.checkpoint.write import export

    folder = tmp_path_factory.mktemp("docs")
    layout = lay_out(open_checkpoint(model_folder("demo")))
    plan = Plan(layout.shape.num_experts, dict.fromkeys(layout.shape.layers, tuple(range(8))))
    run = folder / "runs" / "demo-reap-0.5-layer"
    run.mkdir(parents=True)
    export(layout, plan, run / "checkpoint")
    return folder


def different_code() -> list[Any]:
    """What stands on two pages, but for comments, runs once."""
    code = {ast.dump(ast.parse(block.text)): block for block in BLOCKS if block.language == "python"}
    tests = {block: (pytest.mark.slow,) if "against_random" in block.text else () for block in code.values()}
    return [pytest.param(block, marks=marks, id=block.place) for block, marks in tests.items()]


@pytest.mark.usefixtures("demo_in_float32")
@pytest.mark.parametrize("block", different_code())
def test_code_runs_or_says_why_not(
    block: Block, pruned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # That it runs does not depend on how much it reads.
    fewer = block.text.replace("sequences=64, length=256", "sequences=4, length=64")
    code = compile(ast.parse(fewer), block.place, "exec")
    if not block.reason:
        monkeypatch.chdir(pruned)
        shutil.rmtree(pruned / "pruned", ignore_errors=True)  # of another page
        exec(code, {"__name__": block.place})
        capsys.readouterr()


def test_own_criterion_works(tmp_path: Path) -> None:
    code = next(block for block in blocks(page("criteria")) if block.language == "python")
    (tmp_path / "my_scores.py").write_text(code.text, encoding="utf-8")
    row = resolve(f"{tmp_path / 'my_scores.py'}:gated_power")
    moments = np.arange(1.0, 19.0).reshape(1, 2, 3, 3)
    moments[0, 1] = 0
    zeros, ones = np.zeros((1, 2)), np.ones((1, 2))
    statistics = Statistics(
        np.array([9.0]), moments, zeros, zeros, np.zeros((1, 2, 2)), np.zeros((1, 2, 1)), *[ones] * 4
    )
    assert np.array_equal(row.score(statistics), [[9.0, np.nan]], equal_nan=True)
    assert row.formula.startswith("Σ g²·‖f‖²")


# Tables against the code.


@pytest.mark.parametrize("name", CRITERIA)
def test_criterion_is_documented(name: str) -> None:
    row = CRITERIA[name]
    lines = page("criteria").read_text(encoding="utf-8").replace("\\|", "|").splitlines()
    line = next((line for line in lines if line.startswith((f"| `{name}` |", f"| `{name}`, "))), "")
    assert f"`{row.formula}`" in line
    for paper in re.findall(r"\d{4}\.\d{5}", row.source):
        assert f"https://arxiv.org/abs/{paper}" in line
    if row.cost:
        assert f"| {row.cost:g} |" in line
    options = row.experiment.options if row.experiment else {}
    settings = [line for line in lines if re.match(rf"\| (all measured|.*`{name}`.*) \| `\w+` \|", line)]
    for option, setting in options.items():
        assert any(f"| `{option}` | {setting.default} |" in line for line in settings), option


COMMANDS = {
    "prune": "prune",
    "compare": "compare",
    "audit": "audit",
    "finetune": "recovery",
    "effects": "effects",
    "export": "checkpoints",
    "inspect": "prune",
    "criteria": "prune",
    "init": "prune",
    "sample": "sample",
    "doctor": "prune",
}


def test_every_option_is_documented() -> None:
    group: Any = typer.main.get_command(app)
    assert set(group.commands) == set(COMMANDS)
    for name, command in group.commands.items():
        text = page(COMMANDS[name]).read_text(encoding="utf-8") + page("prune").read_text(encoding="utf-8")
        for parameter in command.params:
            for option in (option for option in parameter.opts if option.startswith("--")):
                assert re.search(rf"`{option}[` ]", text) or option == "--help", f"excise {name} {option}"


@pytest.fixture(scope="module")
def results(play: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished folder of every command that writes one, on a tiny model."""
    out = tmp_path_factory.mktemp("results")
    compared = ["--set", "criteria=[reap, causal_removal]", "--set", "validate.chance=normal"]
    compared += ["--set", "compare.scopes=[layer, global]", "--set", "prune.fraction=0.25"]
    audited = ["--set", "validate.audit.positions=all", "--set", "validate.progressive.windows=2"]
    audited += ["--set", "validate.progressive.positions=2"]
    trained = ["--set", "finetune.random_plans=3"]
    calls = {
        "prune": ["prune", "tasks", "--set", "criteria=[reap, causal_removal]"],
        "compare": ["compare", "tasks", *compared],
        "audit": ["audit", "prune", *audited],
        "finetune": ["finetune", "finetune", *trained],
    }
    for name, (command, recipe, *options) in calls.items():
        file = str(play.folder / f"{recipe}.yaml")
        result = CliRunner().invoke(
            app, [command, file, "-o", str(out / name), "--quiet", "--json", *options]
        )
        assert result.exit_code == 0, result.output
        (out / name / "printed.json").write_text(result.stdout, encoding="utf-8")
    return {name: out / name for name in calls}


WRITTEN = [
    ("prune", "validation.json", "prune"),
    ("prune", "printed.json", "prune"),
    ("prune", "plan.json", "prune"),
    ("prune", "environment.json", "prune"),
    ("prune", "losses.csv", "prune"),
    ("prune", "items.csv", "prune"),
    ("prune", f"checkpoint/{PLAN}", "prune"),
    ("compare", "comparison.json", "compare"),
    ("compare", "comparison.csv", "compare"),
    ("audit", "audit.json", "audit"),
    ("audit", "audit.csv", "audit"),
    ("audit", "positions.csv", "audit"),
    ("audit", "progressive.csv", "audit"),
    ("audit", "effects.parquet", "effects"),
    ("finetune", "recovery.json", "recovery"),
    ("finetune", "healing.csv", "recovery"),
    ("finetune", "recovery/criterion/training.csv", "recovery"),
    ("finetune", "recovery/criterion/curve.csv", "recovery"),
    ("finetune", f"recovered/{RECOVERY}", "checkpoints"),
]
SHARED_TABLES = {"compare": ["prune"], "audit": ["prune"], "recovery": ["prune", "checkpoints"]}
# What follows these keys is named by the data: layers, criteria, measures, options.
NAMED_BY_DATA = {"kept_per_layer", "kept", "spearman", "formulas", "modes", "versions", "settings"}


@pytest.mark.slow
@pytest.mark.parametrize(("command", "file", "name"), WRITTEN, ids=lambda part: str(part))
def test_every_key_is_documented(results: dict[str, Path], command: str, file: str, name: str) -> None:
    known = {span for other in (name, *SHARED_TABLES.get(name, [])) for span in spans(page(other))}
    data = {"reap", "causal_removal", "loss", "guess"}
    missing = set(keys_of(results[command] / file)) - known - data
    assert not missing, f"docs/{name}.md has no `key` for them"


TYPED = [
    ("prune", "validation.json", ValidationResult),
    ("prune", "printed.json", PruneResult),
    ("compare", "comparison.json", ComparisonResult),
    ("audit", "audit.json", AuditResult),
    ("finetune", "recovery.json", RecoveryResult),
    ("finetune", f"recovered/{RECOVERY}", RecoveryJson),
]
# Criteria, measures, outcomes and corrections: keys of plain tables.
KEYS_OF_TABLES = {"reap", "causal_removal", "loss", "guess", "delta", "absolute", "kl"}
KEYS_OF_TABLES |= {"bonferroni", "holm", "benjamini-hochberg"}


@pytest.mark.slow
@pytest.mark.parametrize(("command", "file", "kind"), TYPED, ids=lambda part: str(part))
def test_every_file_is_what_its_type_promises(
    results: dict[str, Path], command: str, file: str, kind: Any
) -> None:
    written = json.loads((results[command] / file).read_text(encoding="utf-8"))
    assert not list(problems(written, kind))
    assert set(keys_in(written)) - KEYS_OF_TABLES <= set(typed_keys(kind))


PRINTED = [
    (["doctor", "--json"], DoctorResult),
    (["prune", "demo", "--dry-run", "--json"], ForecastJson),
    (["inspect", "demo", "--json"], InspectResult),
    (["criteria", "--json"], list[CriterionJson]),
]


@pytest.mark.parametrize(("arguments", "kind"), PRINTED, ids=lambda part: str(part))
def test_printed_keys_are_typed_and_documented(
    arguments: list[str], kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = json.loads(CliRunner().invoke(app, arguments).stdout)
    promised = set(typed_keys(kind))
    assert not list(problems(printed, kind))
    assert set(keys_in(printed)) <= promised
    assert promised <= set(spans(page("prune")))


def keys_of(file: Path) -> Iterator[str]:
    """The columns of a table, or all keys of a JSON file."""
    if file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8") as opened:
            yield from next(csv.reader(opened))
    elif file.suffix == ".parquet":
        import pyarrow.parquet

        yield from pyarrow.parquet.read_schema(file).names
    else:
        yield from keys_in(json.loads(file.read_text(encoding="utf-8")))


def keys_in(data: Any) -> Iterator[str]:
    if isinstance(data, list):
        for entry in data:
            yield from keys_in(entry)
    elif isinstance(data, dict):
        for key, value in data.items():
            yield key
            if key in NAMED_BY_DATA and isinstance(value, dict):
                yield from keys_in(list(value.values()))
            else:
                yield from keys_in(value)
