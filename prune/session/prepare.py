"""Refusals of a recipe in a second, without torch: criteria, domains, missing texts, teacher, budgets."""

from pathlib import Path

from criteria.by_name import resolve
from criteria.criterion import DOMAINS, Criterion
from criteria.mixture import check_domains, mix_of, with_mix
from experts.disk.find import StoredModel, check_room, find_model
from experts.disk.layout import lay_out
from experts.disk.loadable import check_loadable
from experts.errors import ExciseError
from experts.files import check_writable
from prune.checkpoint.provenance import check_teacher
from prune.recipe.budget import compared_budgets, distinct, tested_budgets
from prune.recipe.schema import Recipe, TextSettings
from prune.session.prepared import Checked, Prepared
from prune.session.refit_checks import with_possible_refit
from prune.session.run_folder import RunFolder


def prepare(recipe: Recipe, folder: Path, force: bool = False) -> Prepared:
    """Check a recipe, rehearse its export, and fetch its model."""
    checked = check(recipe, folder, force)
    checked.rehearse_export()
    return checked.fetch()


def check(recipe: Recipe, folder: Path, force: bool = False) -> Checked:
    """Refuse whatever can be refused before any weight is downloaded: by headers first, then by small files.

    Raises:
        ExciseError: unknown criteria, unfit models, impossible budgets, occupied outputs.
    """
    criteria = tuple(resolve(name) for name in recipe.criteria)
    _check_domains(recipe, criteria)
    _check_mix(recipe, criteria)
    check_texts(calibration=recipe.calibration, validate=recipe.validation)
    if recipe.refit and recipe.refit.text:
        check_texts(**{"refit.text": recipe.refit.text})
    run = RunFolder(folder, force, recipe.memory.spill)
    if recipe.memory.spill is not None:
        check_writable(recipe.memory.spill, "memory.spill")
    model = find_model(recipe.model)
    layout = lay_out(model.headers())
    budgets = tested_budgets(recipe, layout)
    compared, merged = distinct(compared_budgets(recipe, layout), layout.shape)
    check_loadable(layout.checkpoint.config, model.names, model.name, recipe.trust_remote_code)
    recipe = with_possible_refit(recipe, layout)
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
    comparing = [criterion.name for criterion in criteria if criterion.needs == DOMAINS]
    if comparing and len(domains) < 2:
        needs = "calibration.data needs sources with at least two `domain` labels"
        raise ExciseError(f"{comparing[0]} compares domains: {needs}, found {domains}")


def _check_mix(recipe: Recipe, criteria: tuple[Criterion, ...]) -> None:
    """Mixtures name domains of the text, and belong to criteria that can be mixed."""
    domains = list(dict.fromkeys(source.label for source in recipe.calibration.data))
    weights = recipe.calibration.mix
    for row in criteria:
        check_domains((with_mix(row, mix_of(weights)) if weights else row).mix, domains)


def check_texts(**parts: TextSettings) -> None:
    """Refuse files that are not there; what is in them is read later, with the model's tokenizer.

    Args:
        parts: tables of the recipe, by their keys
    """
    for key, part in parts.items():
        for source in part.data:
            samples = [source.sampled.file] if source.sampled and source.sampled.file else []
            for path in (*source.text, *source.jsonl, *samples):
                if not path.exists():
                    missing = f"{key}.data names {path}: No such file or directory"
                    raise ExciseError(f"{missing}; relative paths start from the recipe's folder")
