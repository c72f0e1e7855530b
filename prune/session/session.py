"""A recipe at work: its model, texts, calibration and tasks; each made once, when something needs it."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import xxhash

from criteria.budget import Budget
from criteria.calibration import Calibration, Storage
from criteria.criterion import Criterion, forms_of
from criteria.protection import protection_notes
from criteria.ranking import score
from criteria.scores import Scores
from criteria.selection import check_protected
from criteria.text.chat_template import ChatTemplate
from criteria.text.sampled.own_text import SampleStore
from experts.anatomy import Anatomy
from experts.cache import Cache
from experts.disk.fingerprint import digest_files
from experts.disk.hub_files import reads_prompts
from experts.disk.shards import open_checkpoint
from experts.disk.weight_files import regular_files
from experts.keys import key_of
from experts.load_anatomy import Opening
from experts.memory_settings import MemorySettings
from experts.model import Model
from experts.plan import Plan
from experts.units import parse_size
from prune.session.prepared import Prepared
from prune.session.texts import Texts
from validate.rig import last_logits
from validate.task_needs import check_tokenizer

if TYPE_CHECKING:
    from validate.tasks import Benchmark

RECOVERY = "recovery (finetune)"


class Session:
    """Of one prepared recipe.

    Attributes:
        prepared: the recipe, checked, with its budgets and folders
        model: loaded at its first use
        texts: calibration, validation and training windows
    """

    def __init__(
        self, prepared: Prepared, *, shared: "Session | None" = None, texts: Texts | None = None
    ) -> None:
        self.prepared, self.recipe, self.folder = prepared, prepared.recipe, prepared.folder
        self.shape, self.fingerprint = prepared.shape, prepared.fingerprint
        self.cache: Cache = shared.cache if shared else Cache(self.folder.path)
        self.model: Model = shared.model if shared else self._new_model()
        own_text = SampleStore(self.cache, self.folder.path / "samples.partial.safetensors")
        self.texts = texts or Texts(self.model, self.recipe, own_text)

    def _new_model(self) -> Model:
        return Model(
            self.prepared.layout,
            self.prepared.fingerprint,
            dtype=self.recipe.dtype,
            trust_remote_code=self.recipe.trust_remote_code,
            memory=self._memory(),
        )

    def _memory(self) -> MemorySettings:
        table = self.recipe.memory
        limit = None if table.limit is None else parse_size(table.limit)
        return MemorySettings(table.model, limit, self.folder.spill)

    @property
    def anatomy(self) -> Anatomy:
        """The loaded model."""
        return self.model.anatomy

    def check_texts(self, *, training: bool = False) -> None:
        """Texts and tasks that cannot be used, here or at all, are refused before anything is written."""
        if training:
            self.model.check_resident(RECOVERY)
        for criterion in self.prepared.criteria:
            if criterion.trains:
                self.model.check_resident(f"training a mask ({criterion.name})")
        self.texts.check(training=training)
        if self.recipe.validation.tasks:
            _ = self.benchmark.parts
            check_tokenizer(self.benchmark.tasks, self.model.new_tokenizer(), str(self.prepared.source))
            if self.benchmark.generates:
                writing = f"writing text ({', '.join(self.benchmark.generates)} of validate.tasks)"
                self.model.check_resident(writing)
            if self.recipe.refit:
                self.model.check_resident("the answers of refitted plans (validate.tasks with refit)")

    # Ranking.

    @cached_property
    def calibration(self) -> Calibration:
        """Statistics and experiments on the calibration text, kept for all runs."""
        return Calibration(
            self.model,
            self.texts.calibration,
            batch=self.recipe.calibration.batch,
            protect=self.recipe.prune.protect_super_experts,
            storage=Storage(self.cache, self.folder.path),
            forms=forms_of(self.prepared.criteria),
            mix=self.recipe.calibration.mix,
            pairs=any(criterion.of_pairs for criterion in self.prepared.criteria),
        )

    def scores(self, budget: Budget) -> list[Scores]:
        """Of every criterion of the recipe; budget: what a search prunes down to."""
        return score(self.model, self.prepared.criteria, self.calibration, budget=budget)

    def check_room(self, budget: Budget) -> None:
        """Refuses a budget without room for the protected experts, before any experiment."""
        check_protected(self.calibration.protected, budget, self.shape)

    def protection_notes(self) -> list[str]:
        """What `protect_super_experts: auto` decided against, where it did."""
        return protection_notes(self.recipe.prune.protect_super_experts, self.shape)

    def reseeded(self, seed: int, criteria: tuple[Criterion, ...]) -> "Session":
        """The same model with calibration windows of another seed, and some of the criteria."""
        texts = self.texts.reseeded(seed)
        prepared = self.prepared.with_recipe(texts.recipe, criteria)
        return Session(prepared, shared=self, texts=texts)

    # Tasks.

    @cached_property
    def benchmark(self) -> "Benchmark":
        """The recipe's tasks with their items; what lm-eval does not know is refused here."""
        from validate.tasks import Benchmark  # takes seconds, and most recipes have none

        tasks = self.recipe.validation.tasks
        assert tasks is not None, "asked for only where there are some"
        template = ""
        if tasks.chat_template:
            tokenizer = self.model.new_tokenizer()
            template = ChatTemplate(tokenizer, tasks.chat_template, "validate.tasks.chat_template").check()
        return Benchmark(
            tasks.names,
            tasks.include,
            tasks.limit,
            tasks.fewshot,
            tasks.data,
            template,
            tasks.confirm_unsafe_code,
        )

    @cached_property
    def tasks_identity(self) -> str:
        """Identity of the tasks as the model meets them: items, prompts, tokenizer, generation settings."""
        source = self.prepared.source
        digest = xxhash.xxh3_128(self.benchmark.hash.encode())
        digest_files(digest, (source / name for name in regular_files(source) if reads_prompts(name)))
        return digest.hexdigest()[:16]

    # What was written.

    def reloaded_logits(self, out: Path, plan: Plan, device: torch.device) -> torch.Tensor:
        """Logits [1, W, V] of a written checkpoint on the first validation window.

        On `device`, because another one rounds differently.
        """
        trust = not plan.uniform or self.recipe.trust_remote_code
        checkpoint = open_checkpoint(out)
        files = {str(tensor.file): tensor.state for tensor in checkpoint.tensors.values()}
        key = key_of("reloaded", plan.digest, self.model.identity, files)
        opening = Opening(out.absolute(), self.recipe.dtype, trust, self.model.memory, key)
        choice = replace(self.model.choice, device=device)
        return last_logits(opening.load(checkpoint, choice, pruned=True), self.texts.validation)
