"""What a recipe's refit is refused for before anything is loaded: text, storage, precision."""

from experts.disk.configuration import text_config
from experts.disk.layout import Layout
from experts.disk.quantised import quantised_expert
from experts.errors import ExciseError
from experts.notes import tell
from finetune.refit.fewest import check_fewest
from prune.checkpoint.refit_storage import check_storable
from prune.recipe.schema import Recipe


def with_possible_refit(recipe: Recipe, layout: Layout) -> Recipe:
    """The recipe; without its refit, where that cannot be had and the recipe says `if_possible`.

    Raises:
        ExciseError: the refit cannot be had.
    """
    if recipe.refit is None:
        return recipe
    try:
        _check(recipe, layout)
    except ExciseError as refusal:
        if not recipe.refit.if_possible:
            raise
        return left_out(recipe, str(refusal))
    return recipe


def left_out(recipe: Recipe, why: str) -> Recipe:
    """The recipe without its refit, and without counts that rest on one; a note says why."""
    tell(f"pruned without a refit (refit.if_possible): {why}")
    by_scores = recipe.prune.model_copy(update={"counts": "scores"})
    return recipe.model_copy(update={"refit": None, "prune": by_scores})


def _check(recipe: Recipe, layout: Layout) -> None:
    assert recipe.refit is not None, "asked before"
    where = "refit.text" if recipe.refit.text else "calibration"
    try:
        check_fewest((recipe.refit.text or recipe.calibration).sequences, recipe.prune.counts)
    except ExciseError as refusal:
        raise ExciseError(f"refit: {refusal}; raise {where}.sequences") from None
    check_storable(layout, dequantise=recipe.refit.dequantise)
    if quantised_expert(layout) is not None:
        _check_dequantised(recipe, layout)


def _check_dequantised(recipe: Recipe, layout: Layout) -> None:
    """What does not go together with experts that are written in bfloat16."""
    if (computes := precision(recipe, layout)) != "bfloat16":
        found = computes or "a dtype that config.json does not name"
        raise ExciseError(
            f"refit.dequantise: the model would compute in {found}, and its experts be written in bfloat16; "
            "set dtype: bfloat16"
        )
    if recipe.prune.target_size is not None:
        raise ExciseError(
            "refit.dequantise: prune.target_size counts experts as they are stored, and dequantised they are "
            "larger; give prune.fraction or prune.keep"
        )
    if recipe.finetune is not None:
        raise ExciseError(
            "refit.dequantise: recovery (finetune) does not begin from dequantised experts; leave one of "
            "them out, or start from an unquantised checkpoint"
        )


def precision(recipe: Recipe, layout: Layout) -> str:
    """The precision that the model computes in, as far as recipe and config.json say it; else empty."""
    if recipe.dtype != "auto":
        return recipe.dtype
    config = layout.checkpoint.config
    for table in (text_config(config), config):
        for key in ("dtype", "torch_dtype"):
            if isinstance(table.get(key), str):
                return str(table[key])
    return ""
