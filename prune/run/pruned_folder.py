"""The checkpoint of a run: refuses that of another model or plan; written once, proven by a reload."""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from experts.disk.companions import PLAN, RECOVERY
from experts.disk.shards import open_checkpoint, read_json
from experts.errors import ExciseError
from experts.files import temporary_folder
from experts.keys import key_of
from experts.plan import Plan
from finetune.refit.logits import refitted_logits
from finetune.refit.provenance import refit_in_words
from finetune.refit.result import Refit
from prune.checkpoint.card import UNCHANGED_WEIGHTS
from prune.checkpoint.refitted import refitted_weights
from prune.checkpoint.slices import pruned_size
from prune.checkpoint.write import export
from prune.recipe.schema import Recipe
from prune.run.card import model_card
from prune.run.result import ValidationResult
from prune.session.refits import Refits
from prune.session.run_folder import write_text
from prune.session.session import Session
from validate.rig import check_reloaded, last_logits, require

STAGE = "export"
WAY_OUT = "choose another --output, or --force to replace it"


@dataclass(frozen=True)
class Pending:
    """A checkpoint whose last check is missing. expected: logits of the restricted model [1, W, V]."""

    expected: Tensor


class PrunedFolder:
    """The folder that a run's plan is exported to."""

    def __init__(self, session: Session, path: Path) -> None:
        self.session, self.path, self.folder = session, path, session.folder
        self.layout, self.force = session.prepared.layout, session.prepared.force
        self._refits: Refits | None = None

    @property
    def refits(self) -> Refits | None:
        """Of the recipe, where it has any; their text is read at the first use."""
        if self._refits is None and self.session.recipe.refit is not None:
            self._refits = Refits(self.session)
        return self._refits

    def check_model(self) -> None:
        """Refuse a checkpoint of another model, before any work."""
        before, fingerprint = self._plan_before(), self.session.fingerprint
        if before and before.model and before.model != fingerprint:
            fingerprints = f"(fingerprint {before.model}, this one has {fingerprint})"
            raise ExciseError(f"{self.path}: was made of another model {fingerprints}; {WAY_OUT}")

    def check_plan(self, plan: Plan) -> None:
        """Refuse a checkpoint of another plan, before the tests."""
        before = self._plan_before()
        if before and before.digest != plan.digest:
            why = "texts or criteria have changed since it was made"
            raise ExciseError(f"{self.path}: keeps other experts than this run would: {why}; {WAY_OUT}")

    def _plan_before(self) -> Plan | None:
        """The plan of the checkpoint that is there and may not be replaced."""
        if self.force or not (self.path / PLAN).is_file():
            return None
        with suppress(ExciseError):  # damaged: the export says what is to be done
            return Plan.read(self.path / PLAN)
        return None

    def write(self, recipe: Recipe, plan: Plan, result: ValidationResult) -> Pending | None:
        """Export a plan, or write its card anew where the checkpoint is there and proven.

        Returns:
            What `prove` needs; None where it was proven before.
        """
        intact = self._is_intact(plan)
        if intact and self.folder.valid(STAGE, self._key(plan)):
            write_text(self.path / "README.md", model_card(recipe, self.layout, plan, result, self._words()))
            return None
        refit = self.refits.of(plan) if self.refits else None
        expected = self._logits(plan, refit)
        if not intact:
            self._export(recipe, plan, result, refit)
        return Pending(expected)

    def _export(self, recipe: Recipe, plan: Plan, result: ValidationResult, refit: Refit | None) -> None:
        # This very checkpoint, but no longer whole, may be replaced.
        damaged = self.path.exists() and self.folder.valid(STAGE, self._key(plan))
        with temporary_folder(self.folder.path) as place:
            changed = None
            if refit is not None:
                dequantise = self.session.prepared.dequantises
                changed = refitted_weights(self.session.model, refit, place, dequantise=dequantise)
            words = changed.words if changed else UNCHANGED_WEIGHTS
            card = model_card(recipe, self.layout, plan, result, words)
            fingerprint, force = self.session.fingerprint, self.force or damaged
            export(self.layout, plan, self.path, card, force, fingerprint, changed)

    def _logits(self, plan: Plan, refit: Refit | None) -> Tensor:
        """Of the pruned model in memory, on the first validation window."""
        windows = self.session.texts.validation
        if refit is None:
            return last_logits(self.session.anatomy, windows, plan)
        return refitted_logits(self.session.anatomy, refit, windows)

    def _words(self) -> str:
        """What happened to the weights, as the checkpoint that is there says it."""
        provenance = self._provenance()
        return refit_in_words(provenance["refit"]) if provenance else UNCHANGED_WEIGHTS

    def _provenance(self) -> Any:
        """excise_recovery.json; None where no weight was changed."""
        if not (self.path / RECOVERY).is_file():
            return None
        return read_json(self.path / RECOVERY)

    def prove(self, plan: Plan, pending: Pending) -> None:
        """Load the checkpoint and compare its logits with the restricted model's, bit by bit.

        The pruned model takes the place of the whole one: never both in memory.
        """
        self.session.model.unload()
        try:
            logits = self.session.reloaded_logits(self.path, plan, pending.expected.device)
            require([check_reloaded(pending.expected, logits)])
        except BaseException:
            shutil.rmtree(self.path)  # unproven, so not left behind
            raise
        self.folder.finish(STAGE, self._key(plan))
        if self.refits:
            self.refits.forget()

    def _key(self, plan: Plan) -> str:
        refit = [self.refits.key] if self.refits else []
        return key_of(STAGE, self.session.fingerprint, plan.digest, *refit)

    def _is_intact(self, plan: Plan) -> bool:
        """Whether the folder holds this plan's checkpoint, every tensor in its place, proven or not."""
        with suppress(ExciseError):
            size = pruned_size(self.layout, plan, dequantise=self.session.prepared.dequantises)
            whole = Plan.read(self.path / PLAN) == plan and open_checkpoint(self.path).size == size
            provenance, refit = self._provenance(), self.refits.key if self.refits else None
            return whole and (provenance["refit"]["key"] if provenance else None) == refit
        return False
