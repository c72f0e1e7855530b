"""A model with everything that is known of it: network, tokenizer, shape, fingerprint, device."""

import gc
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experts.anatomy import Anatomy
from experts.arguments import check_choice, check_kind
from experts.disk.find import fetched, find_model
from experts.disk.fingerprint import fingerprint
from experts.disk.layout import Layout, lay_out
from experts.disk.loadable import check_loadable
from experts.errors import ExciseError, one_line
from experts.files import check_writable
from experts.keys import key_of, libraries
from experts.load_anatomy import Opening
from experts.loading import load_tokenizer
from experts.memory_choice import Choice, choose
from experts.memory_rule import not_resident
from experts.memory_settings import MemorySettings, Mode, mode_of
from experts.plan import Plan
from experts.ranks import joined
from experts.shape import Shape
from experts.team import Together

DTYPES = ("auto", "float32", "bfloat16", "float16")


class Model:
    """A checkpoint, and its network where something needs it.

    The network is loaded at its first use and stays until `unload`. Everything else is known from the files.

    Attributes:
        layout: the checkpoint's tensors as MoE blocks
        name: what the user called it: a folder, or organisation/name on the hub
        dtype: precision in memory: auto (as stored), float32, bfloat16, float16
        trust_remote_code: whether code that comes with the checkpoint is run
        memory: whether the weights stay in memory, and how much of it may be taken
    """

    def __init__(
        self,
        layout: Layout,
        known_fingerprint: str = "",
        *,
        name: str = "",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        device: torch.device | str | None = None,
        memory: MemorySettings | None = None,
    ) -> None:
        self.name = name or str(layout.checkpoint.folder)
        self.layout, self.dtype, self.trust_remote_code = layout, dtype, trust_remote_code
        self.memory = memory or MemorySettings()
        self._known_fingerprint = known_fingerprint
        self._device = torch.device(device) if device is not None else None
        self._anatomy: Anatomy | None = None

    # What the files tell.

    @property
    def folder(self) -> Path:
        """The checkpoint's folder; of a model on the hub, in the local cache."""
        return self.layout.checkpoint.folder

    @property
    def shape(self) -> Shape:
        """L MoE layers, E experts each, k of them active, and router groups."""
        return self.layout.shape

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the checkpoint: configuration, code it names, and every byte of its tensors."""
        return self._known_fingerprint or fingerprint(self.layout.checkpoint)

    @cached_property
    def identity(self) -> tuple[str, ...]:
        """Identity of the model as it computes: files, precision, whose code, and which libraries run it."""
        code = ("trust_remote_code",) if self.trust_remote_code else ()
        return (self.fingerprint, self.dtype, *code, *libraries())

    def new_tokenizer(self) -> PreTrainedTokenizerBase:
        """A tokenizer of one's own, for libraries that change what they are given."""
        return load_tokenizer(self.folder, self.trust_remote_code)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer."""
        return self.new_tokenizer()

    # What takes the weights.

    @property
    def is_loaded(self) -> bool:
        """Whether the network is in memory."""
        return self._anatomy is not None

    @cached_property
    def choice(self) -> Choice:
        """Whether the weights stay in memory, where they go, and why."""
        checkpoint = self.layout.checkpoint
        return choose(checkpoint, self.memory, self.dtype, self.trust_remote_code, self._device)

    @property
    def streamed(self) -> bool:
        """Whether decoder layers are read one by one, whenever they are needed."""
        return self.choice.streamed

    @property
    def anatomy(self) -> Anatomy:
        """The network and its MoE layers. Raises ExciseError if it is not what its files promise."""
        if self._anatomy is None:
            anatomy = self._loaded()
            self._check_shape(anatomy.shape)
            self._anatomy = anatomy
        return self._anatomy

    def _loaded(self) -> Anatomy:
        self.choice.announce()
        anatomy = self._opening.load(self.layout.checkpoint, self.choice)
        ranks = joined()
        if ranks is None or ranks.rank > 0:
            return anatomy
        return replace(anatomy, team=Together(ranks, self._opening))

    @property
    def _opening(self) -> Opening:
        """How this process loads the model, and others do."""
        key = key_of("sweep", self.identity)
        return Opening(self.folder.absolute(), self.dtype, self.trust_remote_code, self.memory, key)

    def check_resident(self, purpose: str) -> None:
        """Refuse what needs the whole network in memory.

        Args:
            purpose: what is asked for, as the subject of a sentence

        Raises:
            ExciseError: the model is streamed.
        """
        asked = self.memory.model == "streamed"
        if self.streamed:
            raise ExciseError(not_resident(str(self.folder), purpose, self.choice.why, asked=asked))

    def _check_shape(self, shape: Shape) -> None:
        # A configuration's class may fill in groups that its file leaves out.
        if replace(shape, top_groups=self.shape.top_groups) != self.shape:
            promised = (
                f"the loaded model has other MoE layers ({shape}) than its files promise ({self.shape})"
            )
            raise ExciseError(f"{self.folder}: {promised}")

    @property
    def network(self) -> PreTrainedModel:
        """The transformers model, in evaluation mode."""
        return self.anatomy.model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.anatomy.device

    def unload(self) -> None:
        """Free the network; the next use loads it again, on the same device."""
        if self._anatomy is not None:
            self._device = self._anatomy.device
            self._anatomy = None
            gc.collect()  # models hold cycles

    @torch.no_grad()
    def generate(self, prompt: str, *, max_new_tokens: int = 40) -> str:
        """Continue a prompt greedily.

        Args:
            prompt: text before the continuation
            max_new_tokens: tokens to add at most

        Returns:
            The continuation alone.
        """
        self.check_resident("text generation")
        tokens = self.tokenizer(prompt, return_tensors="pt").to(self.device)
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
        if not inputs["input_ids"].shape[1]:
            raise ExciseError("the prompt has no tokens; give some text to continue")
        network: Any = self.network  # transformers types `generate` as a tensor
        ids = network.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)[0]
        return str(self.tokenizer.decode(ids[inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    def __repr__(self) -> str:
        state = f"on {self.device}" if self.is_loaded else "not loaded"
        shape = (
            f"{self.shape.num_layers} MoE layers of {self.shape.num_experts} experts, top-{self.shape.top_k}"
        )
        return f"Model({str(self.folder)!r}: {self.layout.family}, {shape}, {state})"


def load(
    name: str | Path,
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    device: torch.device | str | None = None,
    memory: MemorySettings | Mode = "auto",
) -> Model:
    """Load a mixture-of-experts model.

    A model on the hub is downloaded first, or taken from the local cache. Whatever can be refused from its
    headers (a dense model, an unknown architecture, a missing tokenizer, a full disk) is refused before.

    Args:
        name: folder, `demo`, or organisation/name[@revision] on the hub
        dtype: precision in memory: auto (as stored), float32, bfloat16, float16
        trust_remote_code: run code that comes with the checkpoint
        device: where the weights go; by default the GPU if a fifth of its free memory is left, else the CPU
        memory: resident (all weights in memory), streamed (decoder layers are read one by one), auto
            (resident where the weights fit), or all settings

    Returns:
        The model, its network in evaluation mode.

    Raises:
        ExciseError: there is no such model, or it cannot be loaded or pruned.

    Example:
        >>> import experts
        >>> model = experts.load("demo")
        >>> model.shape.num_layers, model.shape.num_experts, model.shape.top_k
        (6, 16, 4)
    """
    check_kind("name", name, (str, Path), "a folder, demo, or organisation/name on the hub")
    check_choice("dtype", dtype, DTYPES)
    place = None if device is None else _device(device)
    stored = find_model(str(name))
    layout = lay_out(stored.headers())
    check_loadable(layout.checkpoint.config, stored.names, stored.name, trust_remote_code)
    here = fetched(stored, layout)
    settings = memory if isinstance(memory, MemorySettings) else MemorySettings(mode_of(memory))
    if settings.spill is not None:
        check_writable(settings.spill, "memory: spill")
    model = Model(
        here,
        name=str(name),
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        device=place,
        memory=settings,
    )
    _ = model.anatomy  # now, so that what cannot be loaded is refused here
    return model


def check_model(model: object) -> None:
    """Refuse what is no loaded model. Raises ExciseError that names where models come from."""
    check_kind("model", model, Model, "a model of experts.load")


def check_plan(model: Model, plan: Plan) -> None:
    """Refuse what is no plan, and a plan for another model.

    Args:
        model: a loaded model
        plan: what was passed as its plan

    Raises:
        ExciseError: `model` is no model, or `plan` is no plan of it.
    """
    check_model(model)
    check_kind("plan", plan, Plan, "a plan of criteria.select, experts.Plan.read or experts.Plan")
    plan.check_model(model.shape.layers, model.shape.num_experts, model.fingerprint if plan.model else "")


def _device(device: torch.device | str) -> torch.device:
    """The device of that name. Raises ExciseError for one that is not there."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, TypeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise ExciseError(f"device {device!r}: expected cpu, cuda or cuda:0 ({one_line(error)})") from error
    return place
