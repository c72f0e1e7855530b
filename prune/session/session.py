"""What a recipe works with: the loaded model, its texts, the calibration, the experiments and the scores; each made once, and kept."""

import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import xxhash
from transformers import PreTrainedTokenizerBase

from criteria.budget import Budget
from criteria.experiment import Measurement, prerequisites
from criteria.experiment_context import ExperimentContext, Store
from criteria.formulas import FEWEST, protects, super_experts
from criteria.greedy import VERSION
from criteria.measure import measure
from criteria.observe import observe
from criteria.registry import Criterion
from criteria.scores import Scores, score
from criteria.selection import plan_for
from criteria.statistics import Array, Statistics
from criteria.text.chat import Template
from criteria.text.context_length import check_vocabulary, context_note
from criteria.text.windows import Windows, check_disjoint, read_windows
from experts.anatomy import Anatomy, dissect
from experts.cache import Cache
from experts.disk.fingerprint import digest_files
from experts.disk.hub_files import reads_prompts
from experts.disk.weight_files import regular_files
from experts.errors import ExciseError
from experts.keys import key_of, libraries
from experts.loading import load_network, load_tokenizer
from experts.notes import tell
from experts.plan import Plan
from prune.recipe.schema import TextSettings
from prune.session.prepare import Prepared
from validate.draw import equal_plans, random_plans
from validate.null import Contest
from validate.task_needs import check_tokenizer

if TYPE_CHECKING:
    from validate.tasks import Benchmark

Marks = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


class Session:
    """Of one prepared recipe. The model is loaded only when something really needs it; results are kept for all runs (cache_folder)."""

    def __init__(self, prepared: Prepared, cache: Cache | None = None) -> None:
        self.prepared, self.recipe, self.folder = prepared, prepared.recipe, prepared.folder
        self.cache = cache or Cache(self.folder.path)
        self.shape, self.fingerprint = prepared.shape, prepared.fingerprint
        self._told: set[str] = set()

    @cached_property
    def anatomy(self) -> Anatomy:
        """The loaded model; one that differs from what its files promise is refused."""
        anatomy = dissect(
            load_network(self.prepared.source, self.recipe.dtype, self.recipe.trust_remote_code)
        )
        if replace(anatomy.shape, top_groups=self.shape.top_groups) != self.shape:
            what = f"the loaded model has other MoE layers ({anatomy.shape}) than its files promise ({self.shape})"
            raise ExciseError(f"{self.prepared.source}: {what}")
        return anatomy

    @cached_property
    def loaded(self) -> tuple[str, ...]:
        """Identity of the model as it computes: files, precision, whose code, and the libraries that run it."""
        code = ("trust_remote_code",) * self.recipe.trust_remote_code
        return (self.fingerprint, self.recipe.dtype, *code, *libraries())

    def unload(self) -> None:
        """Gives the model's memory back."""
        self.__dict__.pop("anatomy", None)
        gc.collect()

    @cached_property
    def windows(self) -> tuple[Windows, Windows]:
        """Calibration and validation; their overlap is an error."""
        calibration, validation = (
            self.read_part(self.recipe.calibration),
            self.read_part(self.recipe.validation),
        )
        check_disjoint(calibration, validation)
        return calibration, validation

    @cached_property
    def training(self) -> Windows:
        """Text of recovery; what validation reads must not stand in it."""
        assert self.recipe.finetune is not None, "asked for only where there is one"
        windows = self.read_part(self.recipe.finetune)
        check_disjoint(windows, self.validation, "finetune")
        return windows

    def read_part(self, part: TextSettings, say: Callable[[str], None] | None = None) -> Windows:
        """Windows of one of the recipe's texts. say: takes notes on it; by default each is told once."""
        say = say or self._tell_once
        checkpoint = self.prepared.layout.checkpoint
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        if note := context_note(part.length, checkpoint.config, shapes):
            say(note)
        text = (part.data, self.tokenizer(), part.length, part.sequences, part.seed)
        windows = read_windows(*text, part.bos, part.chat_template, say)
        check_vocabulary(int(windows.tokens.max()), checkpoint.config)
        return windows

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """A new one each time: lm-eval changes what it is given."""
        return load_tokenizer(self.prepared.source, self.recipe.trust_remote_code)

    def _tell_once(self, note: str) -> None:
        if note not in self._told:
            self._told.add(note)
            tell(note)

    def reseeded(self, seed: int, criteria: tuple[Criterion, ...]) -> "Session":
        """The same with another calibration seed and some of the criteria. Its plans are not validated, so its text may overlap."""
        calibration = self.recipe.calibration.model_copy(update={"seed": seed})
        recipe = self.recipe.model_copy(update={"calibration": calibration})
        other = Session(replace(self.prepared, recipe=recipe, criteria=criteria), self.cache)
        windows = (self.read_part(calibration, _silent), self.validation)
        other.__dict__ |= {"anatomy": self.anatomy, "windows": windows}  # already there: shared
        return other

    @cached_property
    def benchmark(self) -> "Benchmark":
        """The recipe's tasks with their items; what lm-eval does not know is refused here."""
        from validate.tasks import Benchmark  # takes seconds, and most recipes have none

        tasks = self.recipe.validation.tasks
        assert tasks is not None, "asked for only where there are some"
        template = ""
        if tasks.chat_template:
            template = Template(self.tokenizer(), tasks.chat_template, "validate.tasks.chat_template").tried()
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
    def asked(self) -> str:
        """Identity of the tasks as the model meets them: items and prompts, tokenizer, generation settings."""
        source = self.prepared.source
        digest = xxhash.xxh3_128(self.benchmark.hash.encode())
        digest_files(digest, (source / name for name in regular_files(source) if reads_prompts(name)))
        return digest.hexdigest()[:16]

    def reloaded_logits(self, out: Path, plan: Plan, device: torch.device) -> torch.Tensor:
        """Of a written checkpoint, on the first validation window [1, W, V]; on `device`, because another one rounds differently."""
        model = load_network(
            out, self.recipe.dtype, not plan.uniform or self.recipe.trust_remote_code, device
        )
        tokens = torch.from_numpy(self.validation.tokens[:1]).to(device)
        with torch.no_grad():
            logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
        return logits

    def read(self) -> None:
        """Text and tasks: what cannot be used is refused before anything is written."""
        _ = self.windows
        if self.recipe.validation.tasks:
            _ = self.benchmark.parts
            check_tokenizer(self.benchmark.tasks, self.tokenizer(), str(self.prepared.source))

    @property
    def calibration(self) -> Windows:
        return self.windows[0]

    @property
    def validation(self) -> Windows:
        return self.windows[1]

    def calibrate(self) -> Statistics:
        """Statistics of the calibration text: from the cache, an interrupted pass, or a new pass."""
        key = key_of("statistics", self.loaded, self.calibration.hash)
        name, partial = f"{key}.safetensors", self.folder.path / "calibration.partial.safetensors"
        provenance = {"key": key, "model": self.fingerprint, "data": self.calibration.hash}

        def usable(path: Path) -> Statistics | None:
            with suppress(ExciseError):  # not there, damaged or another user's: measured
                statistics, found = Statistics.read(path)
                return statistics if found.get("key") == key else None
            return None

        if kept := self.cache.read(name, usable):
            return kept

        def keep(so_far: Statistics) -> None:
            so_far.save(partial, provenance)

        statistics = observe(
            self.anatomy, self.calibration, self.recipe.calibration.batch, usable(partial), keep
        )
        self.cache.write(name, lambda path: statistics.save(path, provenance))
        partial.unlink(missing_ok=True)
        return statistics

    def protected(self, statistics: Statistics) -> Marks:
        """Experts that are never pruned [L, E]."""
        if not protects(self.recipe.prune.protect_super_experts, statistics.count.size):
            return np.zeros(statistics.count.shape, dtype=bool)
        return super_experts(statistics)

    def protection_notes(self) -> list[str]:
        """What `auto` decided against, where it did."""
        experts = len(self.shape.layers) * self.shape.num_experts
        if self.recipe.prune.protect_super_experts != "auto" or protects("auto", experts):
            return []
        what = f"prune.protect_super_experts: auto protects none of {experts} experts"
        why = f"fewer than {FEWEST}: the rule would always take one, outlier or not"
        return [f"{what} ({why}); true and false decide it"]

    def measured(self, statistics: Statistics, budget: Budget) -> Statistics:
        """The statistics with the results of every experiment that the criteria need; budget: what a search prunes down to."""
        asked = list(
            dict.fromkeys(
                criterion.measurement for criterion in self.prepared.criteria if criterion.measurement
            )
        )
        first = [needed for measurement in asked for needed in prerequisites(measurement)]
        for measurement in dict.fromkeys([*first, *asked]):
            results = self._measure(measurement, statistics, budget)
            statistics = replace(statistics, measured={**statistics.measured, measurement.key: results})
        return statistics

    def _measure(self, measurement: Measurement, statistics: Statistics, budget: Budget) -> dict[str, Array]:
        """One experiment's results: kept, taken up where it was interrupted, or new."""
        protected = self.protected(statistics)
        limits = (budget.total, budget.scope, budget.floor, budget.counts, protected.tobytes().hex())
        bound = (VERSION, *limits) if measurement.kind == "greedy" else ()
        key = key_of("measured", self.loaded, self.calibration.hash, measurement.key, *bound)
        name = f"{key}.safetensors"
        if kept := self.cache.read(name, lambda path: Store(path, key).read() or None):
            return kept
        partial = Store(self.folder.path / "experiment.partial.safetensors", key)
        batch = self.recipe.calibration.batch
        setting = ExperimentContext(
            self.anatomy, self.calibration, batch, statistics, self.shape, budget, protected, partial
        )
        results = measure(measurement, setting)
        self.cache.write(name, lambda path: Store(path, key).write(results))
        partial.clear()
        return results

    def rank(self, statistics: Statistics) -> list[Scores]:
        """Scores of every criterion of the recipe."""
        provenance = (self.shape.layers, self.protected(statistics), self.fingerprint, self.calibration.hash)
        return [score(criterion, statistics, *provenance) for criterion in self.prepared.criteria]

    def contest(self, criterion: Criterion, scores: Scores, budget: Budget) -> Contest:
        """The criterion's plan under a budget, its reverse, and random plans of its sizes."""
        settings = self.recipe.validation
        # The same numbers turned round: a user's function need not give them twice.
        name, formula = f"reversed:{criterion.name}", f"−({criterion.formula})"
        reverse = replace(scores, values=-scores.values, criterion=name, formula=formula)
        plan, reversed_plan = (plan_for(one, budget, self.shape) for one in (scores, reverse))
        drawn = (self.shape, scores.protected, settings.random_plans, settings.random_seed)
        equal = None if plan.uniform else equal_plans(plan, *drawn)
        return Contest(
            plan, reversed_plan, random_plans(plan, *drawn), criterion.formula, budget.scope, equal
        )


def _silent(_: str) -> None:
    """Takes notes on a text that was told of before."""
