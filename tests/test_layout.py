"""The folders are this checkout's packages; imports point downwards, between packages and inside them.

Every import counts, those inside functions too.
"""

import ast
import functools
import graphlib
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("experts", "criteria", "validate", "finetune", "prune")
REST = "the rest"  # modules and folders of a package that its order does not name
LINES = 300

# Floors from the bottom up. A floor has rooms side by side that know nothing of one another; a room is a
# folder, a module, or several.
FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "experts": (
        ("errors limits memory_rule memory_settings units",),
        ("arrays files keys locks memory cache notes modes shape plain_outputs",),
        ("disk",),
        (REST,),  # anatomy, plan, seam, routing, ablation, surgery, sharing
        ("streaming", "sweep"),
        ("effects",),
        ("memory_choice",),
        ("load_anatomy",),
        ("model",),
        ("interventions",),
    ),
    "criteria": (("text.readers",), ("text",), (REST,)),
    "validate": (("statistics",), (REST,)),
    "finetune": (("settings", "losses"), ("targets",), ("adapters", "teacher"), (REST,)),
    "prune": (
        ("tables results machine typed_json domain_table refit_tables allocation_table",),
        ("recipe",),
        ("checkpoint",),
        ("session",),
        ("effects", "compare", "recover"),
        ("audit", "run", "inspect", "forecast", "doctor", "sample"),
        ("starter",),
        ("console",),
        ("entry",),
    ),
}
# Imports against that order. Each is to go; none may join them.
UPWARDS: set[tuple[str, str]] = set()


@functools.cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, at every depth."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }


def imported(file: Path) -> Iterator[str]:
    """The names that a file imports from somewhere, `package.module.name` included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str) -> str:
    """The module of these packages that a name is or lies in; empty if it is another's."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return name


@functools.cache
def imports() -> dict[str, frozenset[str]]:
    """Module -> the modules of these packages that it imports."""
    return {
        module: frozenset(map(module_of, imported(file))) - {"", module} for module, file in modules().items()
    }


def room(module: str) -> tuple[int, str]:
    """Floor and room of a module in its package; what a package itself offers lies above all of it."""
    package, _, inside = module.partition(".")
    floors = FLOORS[package]
    if not inside:
        return len(floors), package
    for floor, rooms in enumerate(floors):
        for names in rooms:
            if any(f"{inside}.".startswith(f"{name}.") for name in names.split()):
                return floor, names
    assert (REST,) in floors, f"{module} has no place in the order of {package}; add its folder to FLOORS"
    return floors.index((REST,)), REST


def points_down(module: str, target: str) -> bool:
    package, below = module.split(".")[0], target.split(".")[0]
    if package != below:
        return PACKAGES.index(below) < PACKAGES.index(package)
    (floor, own), (other_floor, other) = room(module), room(target)
    return other_floor < floor or own == other


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_this_checkout(package: str) -> None:
    assert Path(importlib.import_module(package).__file__ or "").parent == ROOT / package


def test_folders_are_packages() -> None:
    """A folder without __init__.py is not looked into by mypy, nor packed into the wheel's metadata alike."""
    folders = {file.parent for file in modules().values()}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_every_room_exists() -> None:
    """A folder that was renamed would take its rule with it."""
    for package, floors in FLOORS.items():
        rooms = " ".join(names for rooms in floors for names in rooms if names != REST).split()
        assert not [name for name in rooms if f"{package}.{name}" not in modules()]


def test_imports_point_down() -> None:
    upwards = {
        (module, target)
        for module, targets in imports().items()
        for target in targets
        if not points_down(module, target)
    }
    assert upwards == UPWARDS, "new ones are to be turned round; those that are gone leave the list"


def test_no_circles() -> None:
    """Not even through imports inside functions."""
    graph = {module: set(targets) for module, targets in imports().items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_dense_file(package: str) -> None:
    """One idea a file."""
    counts = {
        str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines())
        for module, file in modules().items()
        if module.split(".")[0] == package
    }
    assert not {file: count for file, count in counts.items() if count > LINES}
