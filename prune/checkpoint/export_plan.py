"""The checkpoint of a plan with its card, without torch; what `prune.export` and `excise export` call."""

from pathlib import Path

from experts.disk.fingerprint import fingerprint
from experts.disk.layout import Layout
from experts.plan import Plan
from prune.checkpoint.card import UNCHANGED_WEIGHTS, plan_card
from prune.checkpoint.write import Exported, TrainedWeights, export


def export_plan(
    layout: Layout,
    plan: Plan,
    out: Path,
    *,
    name: str,
    force: bool = False,
    known_fingerprint: str = "",
    recovered: TrainedWeights | None = None,
) -> Exported:
    """Write the checkpoint that keeps what a plan keeps, with a card that says so.

    Args:
        layout: the source
        plan: experts to keep
        out: folder of the new checkpoint
        name: of the source, for the card
        force: replace a checkpoint that Excise wrote
        known_fingerprint: of the source; empty = computed, where the plan names one
        recovered: weights that were trained since

    Raises:
        ExciseError: the plan is for another model, the folder is taken, the disk is full, or the source
            changed; nothing is left behind.
    """
    # A plan for any model has nothing to be compared with.
    identity = (known_fingerprint or fingerprint(layout.checkpoint)) if plan.model else ""
    words = recovered.words if recovered else UNCHANGED_WEIGHTS
    return export(layout, plan, out, plan_card(name, layout, plan, words), force, identity, recovered)
