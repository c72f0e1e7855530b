"""Write the checkpoint of a plan, as users call it."""

import tempfile
from pathlib import Path

from experts.arguments import check_kind
from experts.disk.layout import Layout
from experts.errors import ExciseError
from experts.model import Model, check_plan
from experts.plan import Plan
from finetune.recover_model import RecoveredModel
from finetune.results import RecoveryJson
from prune.checkpoint.export_plan import export_plan
from prune.checkpoint.slices import by_name, slice_layout
from prune.checkpoint.stored_weights import StoredWeights
from prune.checkpoint.write import Exported, TrainedWeights


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
        plan: of `criteria.select`, or made by hand; with `recovered` the plan that was recovered
        out: folder of the new checkpoint
        force: replace a checkpoint that Excise wrote
        recovered: of `finetune.recover`, inside its block or after it: the trained weights are written
            instead of the source's

    Returns:
        The folder, its bytes, the bytes that went, and notes.

    Raises:
        ExciseError: the plan is for another model, `recovered` is of another plan or model, the folder is
            taken, the disk is full, or the source changed.

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
    check_plan(model, plan)
    check_kind("out", out, (str, Path), "the path of a folder")
    known = model.fingerprint if plan.model else ""
    if recovered is None:
        return export_plan(
            model.layout, plan, Path(out), name=model.name, force=force, known_fingerprint=known
        )
    _check_recovered(model, plan, recovered)
    with tempfile.TemporaryDirectory(prefix="excise-") as folder:
        trained = trained_weights(model.layout, recovered, Path(folder) / "merged")
        return export_plan(
            model.layout,
            plan,
            Path(out),
            name=model.name,
            force=force,
            known_fingerprint=known,
            recovered=trained,
        )


def trained_weights(layout: Layout, recovered: RecoveredModel, folder: Path) -> TrainedWeights:
    """Write the trained tensors of a recovery as the checkpoint stores them.

    Args:
        layout: of the unpruned model
        recovered: the recovered one
        folder: where the tensors go; it has to stay until they are exported
    """
    storage = StoredWeights(recovered.anatomy.model, by_name(slice_layout(layout, recovered.plan)))
    changed = storage.write(recovered.weights, folder)
    provenance: RecoveryJson = {"plan": recovered.plan.digest, "training": recovered.training}
    return TrainedWeights(changed, provenance)


def _check_recovered(model: Model, plan: Plan, recovered: RecoveredModel) -> None:
    """Refuse weights that were trained for other experts, or on another model."""
    check_kind("recovered", recovered, RecoveredModel, "what finetune.recover yields")
    if recovered.plan.digest != plan.digest:
        raise ExciseError(
            f"recovered: its weights were trained for another plan (digest {recovered.plan.digest}, this one "
            f"has {plan.digest}); export recovered.plan, or recover this plan"
        )
    if recovered.fingerprint != model.fingerprint:
        raise ExciseError(
            f"recovered: its weights are of another model (fingerprint {recovered.fingerprint}, this one has "
            f"{model.fingerprint}); export it with the model it was recovered from"
        )
