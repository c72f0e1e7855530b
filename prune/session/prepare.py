"""Everything about a recipe that can be refused in a second: criteria, model files, budget, output. No torch."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from criteria.budget import Budget, BudgetScope
from criteria.by_name import resolve
from criteria.criterion import DOMAINS, Criterion
from experts.disk.find import StoredModel, check_room, find_model
from experts.disk.fingerprint import fingerprint
from experts.disk.layout import Layout, lay_out
from experts.disk.loadable import check_loadable
from experts.disk.names import hub_name
from experts.disk.shards import open_checkpoint
from experts.errors import ExciseError
from experts.plan import Plan
from experts.shape import Shape
from prune.checkpoint.output import check_output
from prune.checkpoint.provenance import check_teacher, promised_plan
from prune.checkpoint.rehearsal import check_export, trial_plans
from prune.effects.request import Request
from prune.recipe.budget import compared_budgets, distinct, tested_budgets
from prune.recipe.schema import BUDGETS, Recipe, TextSettings
from prune.results import ModelJson
from prune.session.run_folder import CHECKPOINT, RunFolder
from validate.verdict import ALPHA, Null


@dataclass(frozen=True)
class Checked:
    """A recipe that holds together, by names and headers alone: no weights were downloaded for it.

    budgets: per scope to be tested, the recipe's own scope first; compared: those of `excise compare`;
    merged: which of these were left out, because they come to the same plans as another; teacher: None = the
    unpruned model.
    """

    recipe: Recipe
    criteria: tuple[Criterion, ...]
    model: StoredModel
    teacher: StoredModel | None
    layout: Layout
    budgets: dict[BudgetScope, Budget]
    compared: tuple[Budget, ...]
    merged: tuple[str, ...]
    folder: RunFolder
    force: bool

    @property
    def shape(self) -> Shape:
        return self.layout.shape

    def rehearse_export(self) -> None:
        """Refuses what the export would be refused for at the end, with plans of the recipe's own budget."""
        layout = replace(
            self.layout, checkpoint=replace(self.layout.checkpoint, folder=self.model.companions())
        )
        plans = trial_plans(self.shape, self.budgets[self.recipe.prune.scope])
        check_export(layout, plans, self.folder.path / CHECKPOINT)

    def fetch(self) -> "Prepared":
        """The same with the weights here: downloaded now, if they are on the hub, the teacher's too."""
        teacher = self.teacher.fetch() if self.teacher else None
        source = self.model.fetch()
        layout = _layout_in(source, self.layout)
        return Prepared(
            recipe=_pinned_teacher(self.recipe, self.teacher),
            criteria=self.criteria,
            source=source,
            layout=layout,
            budgets=self.budgets,
            fingerprint=fingerprint(layout.checkpoint),
            folder=self.folder,
            force=self.force,
            compared=self.compared,
            merged=self.merged,
            teacher=teacher,
            commit=self.model.commit,
        )


@dataclass(frozen=True)
class Prepared:
    """A recipe that holds together, and its model.

    budgets, compared, merged: as in `Checked`; teacher: its folder; commit: of a model on the hub.
    """

    recipe: Recipe
    criteria: tuple[Criterion, ...]
    source: Path
    layout: Layout
    budgets: dict[BudgetScope, Budget]
    fingerprint: str
    folder: RunFolder
    force: bool
    compared: tuple[Budget, ...] = ()
    merged: tuple[str, ...] = ()
    teacher: Path | None = None
    commit: str = ""

    @property
    def shape(self) -> Shape:
        return self.layout.shape

    def with_recipe(self, recipe: Recipe, criteria: tuple[Criterion, ...]) -> "Prepared":
        """The same model and folders for another recipe, of some of the criteria."""
        return replace(self, recipe=recipe, criteria=criteria)

    @property
    def scopes(self) -> list[BudgetScope]:
        return list(self.budgets)

    @property
    def model(self) -> ModelJson:
        """What results say of the model; on the hub with the commit that was read."""
        named: ModelJson = {"name": self.recipe.model, "fingerprint": self.fingerprint}
        return {**named, "commit": self.commit} if self.commit else named

    @property
    def pinned(self) -> str:
        """The model's name in a recipe to be run again: what a branch means may change, a commit does not."""
        named = hub_name(self.recipe.model) if self.commit else None
        return f"{named.id}@{self.commit}" if named else self.recipe.model


def prepare(recipe: Recipe, folder: Path, force: bool = False) -> Prepared:
    """Refuses unknown criteria, unfit models, impossible budgets, occupied outputs and failing exports; then fetches the model."""
    checked = check(recipe, folder, force)
    checked.rehearse_export()
    return checked.fetch()


def check(recipe: Recipe, folder: Path, force: bool = False) -> Checked:
    """All that can be refused before any weight is downloaded: by headers first, then by the small files."""
    criteria = tuple(resolve(name) for name in recipe.criteria)
    _check_domains(recipe, criteria)
    _check_texts(recipe.calibration, recipe.validation)
    run = RunFolder(folder, force)
    model = find_model(recipe.model)
    layout = lay_out(model.headers())
    budgets = tested_budgets(recipe, layout)
    compared, merged = distinct(compared_budgets(recipe, layout), layout.shape)
    check_loadable(layout.checkpoint.config, model.names, model.name, recipe.trust_remote_code)
    teacher = _teacher(recipe)
    check_room(model, *[teacher] if teacher else [])
    if teacher:
        check_teacher(teacher.companions(), model.companions())
    return Checked(recipe, criteria, model, teacher, layout, budgets, compared, merged, run, force)


def _teacher(recipe: Recipe) -> StoredModel | None:
    """The teacher that the recipe names, with weights that can be read."""
    if recipe.finetune is None or not recipe.finetune.teacher.model:
        return None
    teacher = find_model(recipe.finetune.teacher.model)
    teacher.headers()
    return teacher


def _check_domains(recipe: Recipe, criteria: tuple[Criterion, ...]) -> None:
    domains = {source.label for source in recipe.calibration.data}
    if len(domains) < 2 and (
        lonely := [criterion.name for criterion in criteria if criterion.needs == DOMAINS]
    ):
        raise ExciseError(
            f"{lonely[0]} compares domains: calibration.data needs sources with at least two `domain` labels, found {domains}"
        )


def _check_texts(*parts: TextSettings) -> None:
    """Files that are not there are found now; what is in them is read with the model's tokenizer."""
    for path in (path for part in parts for source in part.data for path in (*source.text, *source.jsonl)):
        if not path.exists():
            raise ExciseError(f"{path}: No such file or directory")


def _pinned_teacher(recipe: Recipe, teacher: StoredModel | None) -> Recipe:
    """The recipe with a teacher on the hub at the commit that is read: what comes out depends on it."""
    if recipe.finetune is None or teacher is None or not teacher.commit:
        return recipe
    settings = recipe.finetune.teacher.model_copy(update={"model": teacher.pinned})
    return recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update={"teacher": settings})})


def prepare_comparison(recipe: Recipe, folder: Path, force: bool = False) -> Prepared:
    """For `excise compare`: one that can come to no verdict is refused as well."""
    checked = check(recipe, folder, force)
    check_comparison(checked)
    return checked.fetch()


def prepare_audit(recipe: Recipe, folder: Path, force: bool = False) -> Prepared:
    """For `excise audit`: one in which no cell could pass is refused as well."""
    checked = check(recipe, folder, force)
    check_audit(checked)
    return checked.fetch()


def prepare_recovery(recipe: Recipe, folder: Path, force: bool = False) -> Prepared:
    """For `excise finetune`: a pruned folder of another model is refused as well."""
    checked = check(recipe, folder, force)
    if recipe.finetune:
        _check_texts(recipe.finetune)
        if recipe.finetune.checkpoint:
            promised_plan(recipe.finetune.checkpoint, checked.layout)
            return checked.fetch()
    checked.rehearse_export()
    return checked.fetch()


def prepare_effects(request: Request) -> Layout:
    """The model of `excise effects`; what cannot be measured is refused before its weights come."""
    request.check_alone()
    model = find_model(request.model)
    layout = lay_out(model.headers())
    request.check(layout.shape)
    check_loadable(layout.checkpoint.config, model.names, model.name, request.trust_remote_code)
    return _fetched(model, layout)


def prepare_export(name: str, plan: Plan, out: Path, force: bool = False) -> Layout:
    """The model of `excise export`; a plan that does not fit and a taken output are refused before weights come."""
    model = find_model(name)
    layout = lay_out(model.headers())
    plan.check_model(layout.shape.layers, layout.shape.num_experts)
    layout.shape.check_kept(plan.kept)
    check_output(layout.checkpoint.folder, out, force)
    return _fetched(model, layout)


def _fetched(model: StoredModel, layout: Layout) -> Layout:
    check_room(model)
    return _layout_in(model.fetch(), layout)


def _layout_in(folder: Path, before: Layout) -> Layout:
    """The layout of a folder's files; what was read on the hub before has other offsets."""
    return before if before.checkpoint.folder == folder else lay_out(open_checkpoint(folder))


def check_comparison(prepared: Checked | Prepared) -> None:
    """Refuses a comparison that cannot come to any verdict: p from counting is never below 1 / (R + 1), and Holm multiplies it."""
    from validate.statistics import random_plans_needed  # scipy, statsmodels: a second

    settings, tests = prepared.recipe.validation, len(prepared.criteria) * len(prepared.compared)
    limit = (
        settings.tasks.random_plans
        if settings.tasks and settings.tasks.random_plans
        else settings.random_plans
    )
    plans, needed = min(settings.random_plans, limit), random_plans_needed(tests, ALPHA)
    if settings.chance is Null.COUNTED and plans < needed:
        key = "validate.random_plans" if plans == settings.random_plans else "validate.tasks.random_plans"
        raise ExciseError(
            f"{key} is {plans}: after Holm over {tests} tests (criteria × budgets) no p can fall below {tests / (plans + 1):.2g}, so "
            f"nothing could beat chance; take at least {needed}, compare fewer criteria or fractions, or set validate.chance=normal, "
            "which reads p from a t distribution through the random plans"
        )


def check_audit(prepared: Checked | Prepared) -> None:
    """Refuses an audit of layers that are not there, and one of so few positions that no cell could pass."""
    from validate.statistics import documents_needed  # scipy, statsmodels: a second

    settings, layers = prepared.recipe.validation.audit, prepared.shape.layers
    for layer in settings.layers:
        if layer not in layers:
            raise ExciseError(
                f"validate.audit.layers: layer {layer} is dense or absent; the layers with experts are {list(layers)}"
            )
    cells = len(set(settings.layers or layers)) * len(prepared.criteria)
    if settings.positions != "all" and settings.positions < (needed := documents_needed(cells, ALPHA)):
        raise ExciseError(
            f"validate.audit.positions is {settings.positions}: after correction for {cells} cells (criteria × layers) the "
            f"Wilcoxon test cannot pass with fewer than {needed} positions"
        )


def check_pruning(recipe: Recipe) -> None:
    """Refuses what `excise finetune` is for, and a recovery without its text."""
    if recipe.finetune:
        if recipe.finetune.checkpoint:
            raise ExciseError(
                "finetune.checkpoint names a pruned folder: `excise finetune` recovers it, `excise prune` prunes"
            )
        _check_texts(recipe.finetune)


def recovery_output(recipe_name: str, recipe: Recipe) -> tuple[Path, Path | None]:
    """Where `excise finetune` works by default, and the pruned folder the recipe names (None = its own, in the folder of its pruning)."""
    if recipe.finetune is None:
        raise ExciseError(
            "the recipe has no finetune block; it needs at least finetune.data, the text to train on"
        )
    folder = recipe.finetune.checkpoint
    return Path("runs") / f"{recipe_name}-finetune" if folder else default_output(recipe_name, recipe), folder


def default_output(recipe_name: str, recipe: Recipe) -> Path:
    """runs/<recipe>-<criterion>-<budget>-<scope>: one folder per way of pruning, so that none replaces another."""
    budget = next(getattr(recipe.prune, key) for key in BUDGETS if getattr(recipe.prune, key) is not None)
    name = f"{recipe_name}-{recipe.criteria[0]}-{budget}-{recipe.prune.scope}"
    return Path("runs") / re.sub(r"[^\w.-]+", "_", name)
