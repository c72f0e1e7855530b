"""Everything about a recipe that can be refused in a second: criteria, model files, budget, output. No torch."""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from criteria.budget import Budget, Scope, Shape, from_fraction
from criteria.registry import DOMAINS, Criterion, resolve
from experts.errors import ExciseError
from prune.budget import budget_of
from prune.card import source_metadata
from prune.layout import Layout, lay_out
from prune.locate import model_folder
from prune.pruned import check_teacher
from prune.recipe import BUDGETS, Recipe
from prune.shards import fingerprint, open_checkpoint
from prune.stages import RunFolder
from validate.verdict import ALPHA, Null


@dataclass(frozen=True)
class Prepared:
    """A recipe that holds together.

    budgets: per scope to be tested, the recipe's own scope first; compared: those of `excise compare`; merged: which
    of them were left out, because they come to the same plans as another.
    """

    recipe: Recipe
    criteria: tuple[Criterion, ...]
    source: Path
    layout: Layout
    budgets: dict[Scope, Budget]
    fingerprint: str
    folder: RunFolder
    force: bool
    compared: tuple[Budget, ...] = ()
    merged: tuple[str, ...] = ()

    @property
    def shape(self) -> Shape:
        return self.layout.shape

    @property
    def scopes(self) -> list[Scope]:
        return list(self.budgets)


def prepare(recipe: Recipe, folder: Path, force: bool = False) -> Prepared:
    """Refuses unknown criteria, unfit models, impossible budgets and occupied outputs, with one line each."""
    criteria = tuple(resolve(name) for name in recipe.criteria)
    source = model_folder(recipe.model)
    layout = lay_out(open_checkpoint(source))
    source_metadata(layout.checkpoint)  # read here, so that an unreadable one is found before the work
    domains = {source.label for source in recipe.calibration.data}
    if len(domains) < 2 and (lonely := [criterion.name for criterion in criteria if criterion.needs == DOMAINS]):
        raise ExciseError(
            f"{lonely[0]} compares domains: calibration.data needs sources with at least two `domain` labels, found {domains}"
        )
    if recipe.finetune and recipe.finetune.teacher.model:
        check_teacher(model_folder(recipe.finetune.teacher.model), source)
    # Scope global also tests scope layer, so that the table can show both.
    scopes: list[Scope] = ["global", "layer"] if recipe.prune.scope == "global" else ["layer"]
    budgets = dict(_budgets(recipe, layout, scopes))
    compared, merged = _distinct(_compared(recipe, layout), layout.shape)
    print_of = fingerprint(layout.checkpoint)
    run = RunFolder(folder, force)
    return Prepared(recipe, criteria, source, layout, budgets, print_of, run, force, compared, merged)


def _budgets(recipe: Recipe, layout: Layout, scopes: list[Scope]) -> Iterator[tuple[Scope, Budget]]:
    """The recipe's own, and that of the other scope where it can be and has a plan of its own."""
    own = budget_of(recipe.prune, layout, scopes[0])
    yield scopes[0], own
    for scope in scopes[1:]:
        with suppress(ExciseError):
            other = budget_of(recipe.prune, layout, scope)
            if other.kept(layout.shape) != own.kept(layout.shape):
                yield scope, other


def _distinct(budgets: Iterable[Budget], shape: Shape) -> tuple[tuple[Budget, ...], tuple[str, ...]]:
    """Budgets that come to different plans, and what was left out: a plan of two names would be two tests."""
    found: dict[tuple[object, ...], Budget] = {}
    merged: dict[str, None] = {}
    for budget in budgets:
        known = found.setdefault(budget.kept(shape), budget)
        if known.text != budget.text:
            same = f"{budget.text} keeps what {known.text} keeps"
            merged[f"{same}: one test, under the name of the latter"] = None
        elif known is not budget:
            same = f"{budget.text} is asked for twice, or leaves nothing for another scope to decide"
            merged[f"{same}: one test"] = None
    return tuple(found.values()), tuple(merged)


def _compared(recipe: Recipe, layout: Layout) -> Iterator[Budget]:
    for scope in recipe.compare.scopes or (recipe.prune.scope,):
        floor = recipe.prune.floor if scope == "global" else None
        for fraction in recipe.compare.fractions:
            yield from_fraction(layout.shape, fraction, scope, floor, recipe.prune.multiple_of)
        if not recipe.compare.fractions:
            yield budget_of(recipe.prune, layout, scope)


def check_comparison(prepared: Prepared) -> None:
    """Refuses a comparison that cannot come to any verdict: p from counting is never below 1 / (R + 1), and Holm multiplies it."""
    from validate.statistics import random_plans_needed  # scipy, statsmodels: a second

    settings, tests = prepared.recipe.validation, len(prepared.criteria) * len(prepared.compared)
    limit = settings.tasks.random_plans if settings.tasks and settings.tasks.random_plans else settings.random_plans
    plans, needed = min(settings.random_plans, limit), random_plans_needed(tests, ALPHA)
    if settings.chance is Null.COUNTED and plans < needed:
        key = "validate.random_plans" if plans == settings.random_plans else "validate.tasks.random_plans"
        raise ExciseError(
            f"{key} is {plans}: after Holm over {tests} tests (criteria × budgets) no p can fall below {tests / (plans + 1):.2g}, so "
            f"nothing could beat chance; take at least {needed}, compare fewer criteria or fractions, or set validate.chance=normal, "
            "which reads p from a t distribution through the random plans"
        )


def recovery_output(recipe_name: str, recipe: Recipe) -> tuple[Path, Path | None]:
    """Where `excise finetune` works by default, and the pruned folder the recipe names (None = its own, in the folder of its pruning)."""
    if recipe.finetune is None:
        raise ExciseError("the recipe has no finetune block; it needs at least finetune.data, the text to train on")
    folder = recipe.finetune.checkpoint
    return Path("runs") / f"{recipe_name}-finetune" if folder else default_output(recipe_name, recipe), folder


def default_output(recipe_name: str, recipe: Recipe) -> Path:
    """runs/<recipe>-<criterion>-<budget>-<scope>: one folder per way of pruning, so that none replaces another."""
    budget = next(getattr(recipe.prune, key) for key in BUDGETS if getattr(recipe.prune, key) is not None)
    name = f"{recipe_name}-{recipe.criteria[0]}-{budget}-{recipe.prune.scope}"
    return Path("runs") / re.sub(r"[^\w.-]+", "_", name)
