"""A recipe that holds together: first by headers alone, then with its model on this machine."""

from dataclasses import dataclass, replace
from pathlib import Path

from criteria.budget import Budget, BudgetScope
from criteria.criterion import Criterion
from experts.disk.find import StoredModel, layout_in
from experts.disk.fingerprint import fingerprint
from experts.disk.layout import Layout
from experts.disk.names import hub_name
from experts.disk.quantised import quantised_expert
from experts.shape import Shape
from prune.checkpoint.rehearsal import check_export, trial_plans
from prune.recipe.schema import Recipe
from prune.results import ModelJson
from prune.session.refit_room import refit_room, refits_there
from prune.session.run_folder import CHECKPOINT, RunFolder


@dataclass(frozen=True)
class Checked:
    """A recipe that holds together, by names and headers alone: no weights were downloaded for it.

    Attributes:
        recipe: as it was read
        criteria: its criteria, resolved
        model: what is pruned, wherever it is
        teacher: of a recovery; None = the unpruned model
        layout: shape and tensors of the model
        budgets: scope -> budget to be tested; the recipe's own scope first
        compared: budgets of `excise compare`
        merged: which of these are left out, because they come to the same plans as another
        folder: of the run
        force: replace what is there
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
        """Of the model."""
        return self.layout.shape

    @property
    def dequantises(self) -> bool:
        """Whether experts that are stored quantised are written in bfloat16."""
        return _dequantises(self.recipe, self.layout)

    def rehearse_export(self) -> None:
        """Refuses what the export would be refused for at the end, with plans of the recipe's own budget."""
        layout = replace(
            self.layout, checkpoint=replace(self.layout.checkpoint, folder=self.model.companions())
        )
        plans = trial_plans(self.shape, self.budgets[self.recipe.prune.scope])
        beside = max(0, self.refit_room() - refits_there(self.folder.path))
        check_export(layout, plans, self.folder.path / CHECKPOINT, dequantise=self.dequantises, beside=beside)

    @property
    def tested(self) -> tuple[int, int]:
        """Plans that `excise prune` tests, and sets of random plans that they are compared with, at most."""
        tested = len(self.criteria) + len(self.budgets) - 1  # the first criterion in its other scope too
        if self.budgets[self.recipe.prune.scope].scope == "global":
            return tested, tested  # every plan has counts, and so random plans, of its own
        return tested, len({budget.kept(self.shape) for budget in self.budgets.values()})

    def refit_room(self) -> int:
        """Bytes of refitted weights that lie beside the checkpoint until it is proven."""
        like = trial_plans(self.shape, self.budgets[self.recipe.prune.scope])[0]
        return refit_room(self.layout, like, self.recipe, dequantise=self.dequantises)

    def fetch(self) -> "Prepared":
        """The same with the weights here: downloaded now, if they are on the hub, the teacher's too."""
        teacher = self.teacher.fetch() if self.teacher else None
        source = self.model.fetch()
        layout = layout_in(source, self.layout)
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
    """A recipe that holds together, and its model on this machine.

    Attributes:
        recipe: as it was read, a teacher on the hub at its commit
        criteria: its criteria, resolved
        source: folder of the model
        layout: shape and tensors of the model
        budgets: as in `Checked`
        fingerprint: of the model
        folder: of the run
        force: replace what is there
        compared: as in `Checked`
        merged: as in `Checked`
        teacher: folder of another teacher
        commit: of a model on the hub
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
        """Of the model."""
        return self.layout.shape

    @property
    def dequantises(self) -> bool:
        """As in `Checked`."""
        return _dequantises(self.recipe, self.layout)

    def with_recipe(self, recipe: Recipe, criteria: tuple[Criterion, ...]) -> "Prepared":
        """The same model and folders for another recipe, of some of the criteria."""
        return replace(self, recipe=recipe, criteria=criteria)

    @property
    def scopes(self) -> list[BudgetScope]:
        """Scopes to be tested, the recipe's own first."""
        return list(self.budgets)

    @property
    def model(self) -> ModelJson:
        """What results say of the model; on the hub with the commit that was read."""
        named: ModelJson = {"name": self.recipe.model, "fingerprint": self.fingerprint}
        return {**named, "commit": self.commit} if self.commit else named

    @property
    def pinned(self) -> str:
        """The model's name in a recipe to be run again: a branch may move, a commit does not."""
        named = hub_name(self.recipe.model) if self.commit else None
        return f"{named.id}@{self.commit}" if named else self.recipe.model


def _dequantises(recipe: Recipe, layout: Layout) -> bool:
    wanted = recipe.refit is not None and recipe.refit.dequantise
    return wanted and quantised_expert(layout) is not None


def _pinned_teacher(recipe: Recipe, teacher: StoredModel | None) -> Recipe:
    """The recipe with a teacher on the hub at the commit that is read: what comes out depends on it."""
    if recipe.finetune is None or teacher is None or not teacher.commit:
        return recipe
    settings = recipe.finetune.teacher.model_copy(update={"model": teacher.pinned})
    return recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update={"teacher": settings})})
