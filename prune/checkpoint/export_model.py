"""Write the checkpoint of a plan, as users call it."""

import tempfile
from pathlib import Path

from experts.model import Model
from experts.plan import Plan
from finetune.recover_model import RecoveredModel
from finetune.results import RecoveryJson
from prune.checkpoint.card import plan_card
from prune.checkpoint.slices import by_name, slice_layout
from prune.checkpoint.stored_weights import Storage
from prune.checkpoint.write import Exported, TrainedWeights
from prune.checkpoint.write import export as write


def export(
    model: Model,
    plan: Plan,
    out: str | Path,
    *,
    force: bool = False,
    recovered: RecoveredModel | None = None,
) -> Exported:
    """Write the checkpoint that keeps what a plan keeps.

    The source's tensors are streamed from disk, so the network need not be loaded. Every byte is read back
    before the folder takes its name; nothing half-written is left behind.

    Args:
        model: the unpruned model
        plan: of `criteria.select`, or made by hand
        out: folder of the new checkpoint
        force: replace a checkpoint that Excise wrote
        recovered: of `finetune.recover`, inside its block: the trained weights are written instead of the
            source's

    Returns:
        The folder, its bytes, the bytes that went, and notes.

    Raises:
        ExciseError: the plan is for another model, the folder is taken, the disk is full, or the source
            changed.

    Example:
        >>> import experts, prune, tempfile
        >>> model = experts.load("demo")
        >>> plan = experts.Plan(16, {layer: tuple(range(8)) for layer in model.shape.layers})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = prune.export(model, plan, f"{folder}/pruned")
        ...     half = experts.load(f"{folder}/pruned")
        >>> half.shape.num_experts
        8
    """
    out, card = Path(out), plan_card(model.name, model.layout, plan)
    fingerprint = model.fingerprint if plan.model else ""
    if recovered is None:
        return write(model.layout, plan, out, card, force, fingerprint)
    storage = Storage(recovered.anatomy.model, by_name(slice_layout(model.layout, plan)))
    with tempfile.TemporaryDirectory(prefix="excise-") as folder:
        changed = storage.write(recovered.weights, Path(folder) / "merged")
        provenance: RecoveryJson = {"plan": plan.digest, "training": recovered.training}
        trained = TrainedWeights(changed, provenance)
        return write(model.layout, plan, out, card, force, fingerprint, trained)
