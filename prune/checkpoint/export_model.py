"""Write the checkpoint of a plan, as users call it."""

import tempfile
from pathlib import Path

from experts.arguments import check_kind
from experts.disk.layout import Layout
from experts.errors import ExciseError
from experts.model import Model, check_plan
from experts.plan import Plan
from finetune.recover_model import RecoveredModel
from finetune.refit.result import Refit
from finetune.results import RecoveryJson
from prune.checkpoint.export_plan import export_plan
from prune.checkpoint.refitted import refitted_weights
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
    refit: Refit | None = None,
    dequantise: bool = False,
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
        refit: of `finetune.refit_experts`: the refitted weights are written instead of the source's
        dequantise: with `refit`, of a model that stores its experts quantised: all matrices of the kept
            experts are written in bfloat16, the precision that it has to compute in

    Returns:
        The folder, its bytes, the bytes that went, and notes.

    Raises:
        ExciseError: the plan is for another model, `recovered` or `refit` is of another plan or model, the
            folder is taken, the disk is full, the source changed, or it stores what was changed in a
            quantised form.

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
    _check_changes(model, plan, recovered, refit)
    if dequantise and refit is None:
        raise ExciseError("dequantise is for a refit; without one experts stay as they are stored")
    with tempfile.TemporaryDirectory(prefix="excise-") as folder:
        merged = Path(folder) / "merged"
        trained = None
        if recovered is not None:
            trained = trained_weights(model.layout, recovered, merged)
        elif refit is not None:
            trained = refitted_weights(model, refit, merged, dequantise=dequantise)
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
    words = "Then its weights were trained with LoRA, as `excise_recovery.json` says."
    return TrainedWeights(changed, provenance, words)


def _check_changes(model: Model, plan: Plan, recovered: RecoveredModel | None, refit: Refit | None) -> None:
    """Refuse weights that were changed for other experts, or are of another model."""
    if recovered is not None:
        check_kind("recovered", recovered, RecoveredModel, "what finetune.recover yields")
    if refit is not None:
        check_kind("refit", refit, Refit, "what finetune.refit_experts returns")
    if recovered is not None and refit is not None:
        raise ExciseError("recovered and refit are both given; a checkpoint is written with one of them")
    _check_change("recovered", "trained", recovered, plan, model)
    _check_change("refit", "refitted", refit, plan, model)


def _check_change(
    name: str, verb: str, change: RecoveredModel | Refit | None, plan: Plan, model: Model
) -> None:
    if change is None:
        return
    if change.plan.digest != plan.digest:
        raise ExciseError(
            f"{name}: its weights were {verb} for another plan (digest {change.plan.digest}, this one "
            f"has {plan.digest}); export {name}.plan, or make it for this plan"
        )
    if change.fingerprint != model.fingerprint:
        raise ExciseError(
            f"{name}: its weights are of another model (fingerprint {change.fingerprint}, this one has "
            f"{model.fingerprint}); export it with the model that it is of"
        )
