"""Which weights a recovery trains, checked before any work on a model without weights."""

from experts.anatomy import Anatomy, dissect
from experts.disk.layout import Layout
from experts.errors import settings_of
from experts.loading import skeleton
from experts.plan import whole_plan
from finetune.targets import find_targets
from prune.checkpoint.slices import by_name, slice_layout
from prune.checkpoint.stored_weights import StoredWeights
from prune.session.session import Session


def check_targets(session: Session) -> None:
    """Refuse names that match nothing, and weights that could not be written back."""
    settings, prepared = session.recipe.finetune, session.prepared
    assert settings is not None, "asked for only where there is one"
    anatomy = dissect(skeleton(prepared.source, session.recipe.trust_remote_code))
    with settings_of("finetune"):
        check_stored(anatomy, prepared.layout, settings.targets)


def check_stored(anatomy: Anatomy, layout: Layout, targets: tuple[str, ...]) -> None:
    """Whether every weight that `targets` mean has its place in the checkpoint.

    Args:
        anatomy: of the whole model, with or without weights
        layout: of its checkpoint
        targets: groups of weights, or names
    """
    weights = dict(anatomy.model.named_parameters())
    chosen = {name: weights[name] for name in find_targets(anatomy, targets).weights}
    StoredWeights(
        anatomy.model,
        by_name(slice_layout(layout, whole_plan(layout.shape.num_experts, layout.shape.layers))),
    ).check(chosen)
