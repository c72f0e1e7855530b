"""What a run would refuse of its texts, asked by `--dry-run`: with the tokenizer, and without weights.

Most texts are left to the run. Looked at are the refit's own, and what text of the model itself begins with.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from criteria.text.sampled.settings import Start
from criteria.text.sources import Source
from prune.recipe.schema import TextSettings
from prune.session.prepared import Checked

if TYPE_CHECKING:
    from experts.model import Model

REFITS = ("prune", "compare", "finetune")  # commands that refit


def rehearse_texts(command: str, checked: Checked) -> None:
    """Refuse text of a refit that is too short, and a beginning that the tokenizer does not have.

    Text that would have to be downloaded or drawn is not read.

    Raises:
        ExciseError: as the run.
    """
    drawn = list(_drawn(checked))
    reads = command in REFITS and _is_read(checked)
    if not drawn and not reads:
        return
    from prune.session.texts import Texts  # torch: seconds

    model = _model(checked)
    for settings, source in drawn:
        _check_opening(model, settings, source)
    if reads:
        _ = Texts(model, checked.recipe).refit


def _drawn(checked: Checked) -> Iterable[tuple[TextSettings, Source]]:
    """Sources that the model writes itself, and that not every tokenizer has a beginning for."""
    recipe = checked.recipe
    of_refit = recipe.refit.text if recipe.refit else None
    texts = [text for text in (recipe.calibration, of_refit, recipe.finetune) if text is not None]
    for settings in texts:
        for source in settings.data:
            if source.drawn and source.sampled and source.sampled.start != Start.RANDOM:
                yield settings, source


def _is_read(checked: Checked) -> bool:
    """Whether the refit has text of its own that is here."""
    recipe = checked.recipe
    if recipe.refit is None or recipe.refit.text is None:
        return False
    sources = (*recipe.refit.text.data, *recipe.validation.data)
    return not any(source.dataset or source.sampled for source in sources)


def _model(checked: Checked) -> "Model":
    """The model's headers and small files."""
    from experts.model import Model

    checkpoint = replace(checked.layout.checkpoint, folder=checked.model.companions())
    layout = replace(checked.layout, checkpoint=checkpoint)
    return Model(layout, trust_remote_code=checked.recipe.trust_remote_code)


def _check_opening(model: "Model", settings: TextSettings, source: Source) -> None:
    from criteria.text.sampled.from_model import SampledFromModel

    assert source.sampled is not None, "asked before"
    writer = SampledFromModel(model, settings.length, settings.seed, settings.bos)
    writer.own(source.sampled).opening()
