"""The recovered checkpoint of a run: merged weights through the same export, and the adapter beside it."""

import shutil
from pathlib import Path
from typing import cast

from torch import Tensor

from experts.disk.companions import RECOVERY
from experts.disk.shards import open_checkpoint, read_json
from experts.errors import ExciseError
from experts.files import replacing_folder
from experts.plan import Plan
from finetune.recover_model import RecoveredModel
from finetune.recovery import ADAPTER
from finetune.results import RecoveryJson, TrainingJson
from prune.checkpoint.export_model import trained_weights
from prune.checkpoint.history import REFIT
from prune.checkpoint.write import TrainedWeights, export
from prune.recover.card import recovered_card
from prune.session.session import Session
from prune.typed_json import problems
from validate.rig import check_reloaded, require

CHECKPOINT = "recovered"
STAGE = "recover"
BEGUN = "begun "  # before the key of a checkpoint that is being written: it is not the finished one


class RecoveredFolder:
    """Where the criterion's plan goes after its recovery.

    Attributes:
        key: identity of its trained weights
        refitted: the pruned folder, where that was refitted before
    """

    def __init__(self, session: Session, plan: Plan, key: str, refitted: Path | None = None) -> None:
        self.session, self.plan, self.key, self.folder = session, plan, key, session.folder
        self.refitted = refitted
        self.path = self.folder.path / CHECKPOINT

    @property
    def is_done(self) -> bool:
        """Whether these very weights are there, and proven."""
        return self.folder.valid(STAGE, self.key, CHECKPOINT, ADAPTER)

    @property
    def training(self) -> TrainingJson:
        """How its weights were trained, as it says itself."""
        file = self.path / RECOVERY
        provenance = read_json(file)
        wrong = next(problems(provenance, RecoveryJson), None)
        if wrong:
            raise ExciseError(f"{file}: {wrong}; delete {self.path}, and it is trained again")
        return cast(RecoveryJson, provenance)["training"]

    def check(self) -> None:
        """A checkpoint of another training is replaced only with --force."""
        written = self.folder.record.get(STAGE)
        ours = (None, self.key, BEGUN + self.key)
        if self.path.exists() and written not in ours and not self.session.prepared.force:
            way_out = "choose another --output, or --force to replace it"
            raise ExciseError(f"{self.path}: holds the result of another training; {way_out}")

    def write(self, recovered: RecoveredModel, trained: Path) -> None:
        """Export the merged weights, and copy the adapter from the folder of the training."""
        self.folder.begin("recovery")  # the report that may be there is of the checkpoint before
        self.folder.finish(STAGE, BEGUN + self.key)  # from here on the folder is no other training's
        shards = self.folder.path / "recovery" / "merged"
        try:
            self._export(recovered, shards)
        finally:
            shutil.rmtree(shards, ignore_errors=True)
        with replacing_folder(self.folder.path / ADAPTER) as fresh:
            shutil.copytree(trained / ADAPTER, fresh, dirs_exist_ok=True)

    def _export(self, recovered: RecoveredModel, shards: Path) -> None:
        prepared, plan = self.session.prepared, self.plan
        trained = self._with_refit(trained_weights(prepared.layout, recovered, shards))
        card = recovered_card(self.session.recipe, prepared.layout, plan, recovered.training)
        force = prepared.force or self.path.exists()
        export(prepared.layout, plan, self.path, card, force, recovered=trained)

    def _with_refit(self, trained: TrainedWeights) -> TrainedWeights:
        """Refitted tensors that the training left alone are as in the folder that it began from."""
        if self.refitted is None:
            return trained
        stored, said = open_checkpoint(self.refitted).tensors, read_json(self.refitted / RECOVERY)[REFIT]
        refitted = {name: stored[name] for name in said["tensors"]}
        provenance = {**trained.provenance, REFIT: said}
        return TrainedWeights({**refitted, **trained.changed}, provenance, trained.words)

    def prove(self, expected: Tensor) -> None:
        """Load what was written and compare its logits with the merged model's, bit by bit.

        It takes the place of the whole model in memory.
        """
        self.session.model.unload()
        try:
            logits = self.session.reloaded_logits(self.path, self.plan, expected.device)
            require([check_reloaded(expected, logits)])
        except BaseException:
            shutil.rmtree(self.path)
            raise
        self.folder.finish(STAGE, self.key)
