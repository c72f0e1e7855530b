"""The refit of a recipe: its text, its measures, and the refitted weights of the plan that is written."""

import shutil
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from experts.anatomy import MoELayer, dissect
from experts.errors import ExciseError
from experts.inner_activations import DOWN, check_linear
from experts.keys import key_of
from experts.loading import skeleton
from experts.plan import Plan, whole_plan
from finetune.distill.settings import Local
from finetune.refit.fewest import check_fewest
from finetune.refit.layers import check_refittable
from finetune.refit.request import Request
from finetune.refit.result import Refit
from finetune.refit.stored import save_refit, stored_refit
from finetune.refit_losses import RefittedLosses
from finetune.refit_model import refit_by
from prune.checkpoint.slices import by_name, slice_layout
from prune.checkpoint.stored_weights import StoredWeights
from prune.session.measures import row_key, tasks_of
from prune.session.refit_checks import left_out
from prune.session.refit_room import FOLDER
from prune.session.session import Session
from prune.session.texts import is_drawn
from validate.measure import Measure, loss_measure

if TYPE_CHECKING:
    from validate.tasks import ItemEvaluator

PREFIX = "refitted_"
REFITTABLE = "refittable"  # what the record of a run folder says of its model


class Refits:
    """Refits of a session's plans.

    Attributes:
        session: of a recipe with `refit`
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    @cached_property
    def request(self) -> Request:
        """The text, and how; where the model writes the text, it does so now."""
        settings = self.session.recipe.refit
        assert settings is not None, "asked for only where there is one"
        local = None if settings.local is None else Local(**settings.local.model_dump())
        text = self.session.texts.refit
        request = Request(text, settings.chosen, settings.fewest, settings.batch, settings.form, local)
        return request.of_model(self.session.model)

    @cached_property
    def key(self) -> str:
        """Identity of model, text and settings."""
        return self.request.key_on(self.session.model.identity)

    def measures(self, written: Plan | None = None) -> list[Measure]:
        """The recipe's measures after the refit, the held-out loss first.

        Args:
            written: the plan whose refitted weights will be asked for
        """
        session, settings = self.session, self.session.recipe.validation
        losses = RefittedLosses(
            session.model,
            self.request,
            session.texts.validation,
            take=self._save,
            wanted=() if written is None else (written.digest,),
            path=session.folder.path / f"{PREFIX}losses.csv",
            key=key_of(row_key(session), self.key),
            batch=settings.batch,
        )
        return [
            loss_measure(losses),
            *(tasks_of(session, PREFIX, self.key, self._items) if settings.tasks else []),
        ]

    def of(self, plan: Plan, *, keep: bool = True) -> Refit:
        """The refit of a plan, made now where the run has not kept it.

        Args:
            plan: what is kept
            keep: on disk, for a run that is taken up again
        """
        path, fingerprint = self._path(plan), self.session.fingerprint
        if found := stored_refit(path, plan, self.key, fingerprint):
            return found
        refit = refit_by(self.request, self.session.model, plan)
        if keep:
            self._save(refit)
        return refit

    def forget(self) -> None:
        """Take away weights that were kept for the checkpoint; it has them now."""
        shutil.rmtree(self.session.folder.path / FOLDER, ignore_errors=True)

    def _save(self, refit: Refit) -> None:
        save_refit(refit, self._path(refit.plan))

    def _path(self, plan: Plan) -> Path:
        return self.session.folder.path / FOLDER / f"{plan.digest}.safetensors"

    def _items(self, *given: Any) -> "ItemEvaluator":
        from prune.session.refitted_items import RefittedItems  # lm-eval takes seconds to import

        # Answers are kept, weights are not: those of all plans would take many times the checkpoint's room.
        return RefittedItems(self.session.model, partial(self.of, keep=False), *given)


def settled(session: Session) -> Session:
    """The session, or the same without a refit that its model cannot have, where the recipe allows that.

    What its layers do with a window decides; the run folder remembers it, so that a finished run needs no
    model.

    Raises:
        ExciseError: the model cannot be refitted, and the recipe does not say `if_possible`.
    """
    settings, key = session.recipe.refit, key_of(REFITTABLE, session.model.identity)
    if settings is None:
        return session
    known, _, why = session.folder.record.get(REFITTABLE, "").partition(" ")
    if known != key:
        why = _refusal(session)
        session.folder.finish(REFITTABLE, f"{key} {why}".strip())
    if why and not settings.if_possible:
        raise ExciseError(why)
    return without_refit(session, why) if why else session


def forget_refits(run: Path) -> None:
    """Take away what a run with a refit left in a folder that goes on without one.

    Only where nothing can refuse the folder any more: its rows are of the checkpoint that is there.
    """
    shutil.rmtree(run / FOLDER, ignore_errors=True)
    for name in ("losses.csv", "items.csv"):
        (run / f"{PREFIX}{name}").unlink(missing_ok=True)


def _refusal(session: Session) -> str:
    """Why a loaded model cannot be refitted; empty where it can be."""
    try:
        check_refittable(session.anatomy, session.texts.validation)
    except ExciseError as refusal:
        return str(refusal)
    return ""


def without_refit(session: Session, why: str) -> Session:
    """The same session and model without a refit."""
    recipe = left_out(session.recipe, why)
    prepared = session.prepared.with_recipe(recipe, session.prepared.criteria)
    return Session(prepared, shared=session)


def check_refit(session: Session) -> None:
    """Refuse a model that cannot be refitted, or whose weights could not be written back; without weights."""
    settings = session.recipe.refit
    assert settings is not None, "asked for only where there is one"
    text = settings.text or session.recipe.calibration
    if not is_drawn(text):
        request = Refits(session).request
        if session.recipe.prune.counts == "refitted":
            check_fewest(len(request.text), "refitted")
    prepared = session.prepared
    anatomy = dissect(skeleton(prepared.source, session.recipe.trust_remote_code))
    weights = dict(anatomy.model.named_parameters())
    names = {module: name for name, module in anatomy.model.named_modules()}
    for layer in anatomy.layers:
        try:
            check_linear(layer.experts)
        except ExciseError as error:
            raise ExciseError(f"refit: {layer.name}: {error}; leave `refit` out of the recipe") from error
    changed = [
        name for layer in anatomy.layers for name in _changed(layer, names, settings.local is not None)
    ]
    whole = whole_plan(prepared.shape.num_experts, prepared.shape.layers)
    pieces = by_name(slice_layout(prepared.layout, whole, dequantise=prepared.dequantises))
    StoredWeights(anatomy.model, pieces, "refit").check({name: weights[name] for name in changed})


def _changed(layer: MoELayer, names: Mapping[nn.Module, str], trained: bool) -> list[str]:
    """Names of the weights of a layer that change; training changes all matrices, and leaves biases."""
    if not trained:
        return [f"{names[layer.experts]}.{DOWN}"]
    matrices = [name for name in layer.weights if layer.experts.get_parameter(name).ndim > 2]
    return [f"{names[layer.router]}.weight", *(f"{names[layer.experts]}.{name}" for name in matrices)]
