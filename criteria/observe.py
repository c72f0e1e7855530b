"""One forward pass over text that fills Statistics for every observational criterion at once.

Each expert runs once per routed token, as in a plain forward; its output is seen before weighting (experts/seam.py), and only
norms and sums leave the call.
"""

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from criteria.statistics import Statistics
from criteria.text.windows import Windows
from experts.anatomy import Anatomy, MoELayer
from experts.errors import ExciseError
from experts.seam import ExpertOutputs, Forward, intercepted, see_outputs

KEEP_EVERY = 60.0  # seconds between two savings of an unfinished pass
SUMMED = ("moments", "peak", "turning", "together", "by_domain")
BLOCK = 4096  # rows of expert outputs measured at once
Keep = Callable[[Statistics], None]


@dataclass(frozen=True)
class Call:
    """One experts call, measured. Per pair of a token that is not padding [S]: expert, gate, norm = ‖f‖₂, peak = max|f|,
    angle = 1 − cos(h, h + y), domain. Per token: index [T, k], valid [T]; padded: whether any token is padding.
    """

    expert: Tensor
    gate: Tensor
    norm: Tensor
    peak: Tensor
    angle: Tensor
    domain: Tensor
    index: Tensor
    valid: Tensor
    padded: bool


class Sums:
    """Running sums of one MoE layer, float64, on the model's device. Shapes as in Statistics without the leading L."""

    def __init__(self, experts: int, domains: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.moments, self.peak, self.turning = zeros(experts, 9), zeros(experts), zeros(experts)
        self.together, self.by_domain = zeros(experts, experts), zeros(experts, domains)

    def go_on(self, done: Statistics, layer: int) -> None:
        """Takes up the sums of an interrupted pass: what comes next is added as it would have been."""
        for name in SUMMED:
            here: Tensor = getattr(self, name)
            here.copy_(torch.from_numpy(getattr(done, name)[layer].reshape(here.shape).copy()))

    def add(self, call: Call) -> None:
        """Adds one experts call."""
        flat, together = call.expert, call.index[call.valid] if call.padded else call.index
        g, f = call.gate.double(), call.norm.double()
        powers = torch.stack(
            [torch.ones_like(f), f, f * f, g, g * f, g * f * f, g * g, g * g * f, g * g * f * f], dim=-1
        )
        self.moments.index_add_(0, flat, powers)
        self.turning.index_add_(0, flat, g * f * call.angle.double().clamp(min=0))
        self.peak.scatter_reduce_(0, flat, call.peak.double(), "amax")
        active = torch.zeros(len(together), len(self.peak), device=flat.device).scatter_(1, together, 1.0)
        self.together += (active.T @ active).double()
        self.by_domain.view(-1).index_add_(
            0, flat * self.by_domain.shape[1] + call.domain, torch.ones_like(f)
        )


def measure(
    seen: ExpertOutputs, before: Tensor | None, index: Tensor, weight: Tensor, valid: Tensor, domain: Tensor
) -> Call:
    """Norms of the experts' outputs and the turn of the residual stream; index, weight: [T, k]; valid, domain: [T]."""
    norm, peak = norms(seen.outputs)
    pair, token = seen.pair, seen.pair // index.shape[1]
    pairs = {"expert": index.reshape(-1)[pair], "gate": weight.reshape(-1)[pair], "norm": norm, "peak": peak}
    pairs |= {"angle": turn(before, seen.routed)[token], "domain": domain[token]}
    padded = not bool(valid.all())
    if padded:
        pairs = {name: part[valid[token]] for name, part in pairs.items()}
    return Call(**pairs, index=index, valid=valid, padded=padded)


def norms(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """‖f‖₂ and max|f| of every row [S, H] -> [S], at least float32; in blocks, so that nothing of that size is allocated."""
    wide = torch.promote_types(outputs.dtype, torch.float32)
    norm, peak = (torch.empty(len(outputs), dtype=wide, device=outputs.device) for _ in range(2))
    for start in range(0, len(outputs), BLOCK):
        block = outputs[start : start + BLOCK].to(wide)
        torch.linalg.vector_norm(block, dim=1, out=norm[start : start + BLOCK])
        # Twice as fast as abs().amax(), ten times as fast as the infinity norm (CPU).
        torch.maximum(block.amax(dim=1), -block.amin(dim=1), out=peak[start : start + BLOCK])
    return norm, peak


@torch.no_grad()
def observe(
    anatomy: Anatomy,
    windows: Windows,
    batch: int = 8,
    done: Statistics | None = None,
    keep: Keep | None = None,
) -> Statistics:
    """Statistics of `windows` under the model. batch: windows per forward; it changes memory and speed, never the result.

    done: statistics of the first windows, from an interrupted pass; keep: called with the statistics so far about every minute.
    """
    weights = weigh(anatomy)
    sums = [Sums(anatomy.shape.num_experts, len(windows.domains), anatomy.device) for _ in anatomy.layers]
    start = 0 if done is None else _go_on(sums, done, windows, weights)
    seen, kept_at = start, time.monotonic()
    with (
        watched(anatomy, sums) as forward,
        tqdm(total=len(windows), initial=start, desc="calibrate", unit="window", delay=2) as bar,
    ):
        for first in range(start, len(windows), batch):
            part = windows.select(np.arange(first, min(first + batch, len(windows))))
            forward(part)
            seen += len(part)
            bar.update(len(part))
            if keep and time.monotonic() - kept_at > KEEP_EVERY:
                keep(_collect(sums, windows.select(np.arange(seen)), weights))
                kept_at = time.monotonic()
    return _collect(sums, windows, weights)


@contextmanager
def watched(anatomy: Anatomy, sums: list[Sums]) -> Iterator[Callable[[Windows], None]]:
    """Gives a function that runs a batch of windows through the model and adds what the experts did to `sums`."""
    device = anatomy.device
    now: dict[str, Tensor] = {}
    with residuals(anatomy) as residual:

        def watch(layer: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
            seen = see_outputs(anatomy.layers[layer].experts, run, hidden, index, weight)
            sums[layer].add(measure(seen, residual(layer), index, weight, now["valid"], now["domain"]))
            return seen.routed

        def forward(part: Windows) -> None:
            tokens, mask, domain = (
                torch.from_numpy(array).to(device) for array in (part.tokens, part.mask, part.domain)
            )
            now.update(valid=mask.reshape(-1), domain=domain.unsqueeze(1).expand_as(tokens).reshape(-1))
            padding = {} if bool(mask.all()) else {"attention_mask": mask.long()}
            # Without the head: its logits are not needed, and are the largest tensor of a forward.
            anatomy.model.base_model(input_ids=tokens, use_cache=False, **padding)

        with intercepted(anatomy, watch):
            yield forward


def turn(before: Tensor | None, routed: Tensor) -> Tensor:
    """1 − cos(h, h + y) per token [T]: how far the routed output y turns the residual stream h.

    nan where h cannot be seen, or where experts work in a space of their own size, from which the block projects back later.
    """
    if before is None or before.numel() != routed.numel():
        return torch.full(routed.shape[:1], torch.nan, device=routed.device)
    wide = torch.promote_types(routed.dtype, torch.float32)
    before = before.reshape(routed.shape).to(wide)
    return 1 - nn.functional.cosine_similarity(before, before + routed.to(wide), dim=-1)


def _windows_in(done: Statistics, windows: Windows) -> int:
    """How many of the first windows `done` is made of, by its tokens: padding is none."""
    tokens = windows.mask.sum(axis=1).cumsum()
    count = int(np.searchsorted(tokens, done.tokens.sum())) + 1
    if done.tokens.sum() == 0:
        return 0
    if count > len(windows) or tokens[count - 1] != done.tokens.sum():
        raise ExciseError("the statistics of an interrupted pass are of other windows; begin without them")
    return count


def _go_on(sums: list[Sums], done: Statistics, windows: Windows, weights: dict[str, Any]) -> int:
    """Puts the sums of an interrupted pass in place; gives the number of windows they are of."""
    if not np.allclose(done.weight_l2, weights["weight_l2"]):
        raise ExciseError("the statistics of an interrupted pass are of another model: its weights differ")
    for layer, part in enumerate(sums):
        part.go_on(done, layer)
    return _windows_in(done, windows)


def _collect(sums: list[Sums], seen: Windows, weights: dict[str, Any]) -> Statistics:
    def stacked(key: str) -> Any:
        return np.stack([getattr(part, key).cpu().numpy() for part in sums])

    tokens = np.bincount(seen.domain, weights=seen.mask.sum(axis=1), minlength=len(seen.domains)).astype(
        np.float64
    )
    moments = stacked("moments")
    rest = {key: stacked(key) for key in ("peak", "turning", "together", "by_domain")}
    return Statistics(tokens=tokens, moments=moments.reshape(*moments.shape[:2], 3, 3), **rest, **weights)


@torch.no_grad()
def weigh(anatomy: Anatomy) -> dict[str, Any]:
    """Norms of router rows and of expert matrices (biases left out), for the criteria that need no text."""
    found: dict[str, list[Any]] = {"router_norm": [], "weight_l1": [], "weight_l2": [], "weight_count": []}
    for layer in anatomy.layers:
        matrices = [parameter for parameter in layer.weights.values() if parameter.ndim == 3]
        if any(not parameter.is_floating_point() for parameter in matrices):
            raise ExciseError(
                f"{layer.name}: the experts are quantised in memory; calibrate with dtype: bfloat16 or float32"
            )
        found["router_norm"].append(
            torch.linalg.vector_norm(_router_weight(layer), dim=1, dtype=torch.float64).cpu().numpy()
        )
        found["weight_l1"].append(
            _per_expert(matrices, lambda w: torch.linalg.vector_norm(w, ord=1, dtype=torch.float64))
        )
        found["weight_l2"].append(
            _per_expert(matrices, lambda w: torch.linalg.vector_norm(w, dtype=torch.float64) ** 2)
        )
        found["weight_count"].append(_per_expert(matrices, lambda w: torch.tensor(float(w.numel()))))
    return {key: np.stack(rows) for key, rows in found.items()}


def _router_weight(layer: MoELayer) -> Tensor:
    weight = layer.router.weight
    assert isinstance(weight, Tensor)
    return weight


def _per_expert(matrices: Sequence[Tensor], measure: Callable[[Tensor], Tensor]) -> Any:
    return np.array([sum(float(measure(matrix[e])) for matrix in matrices) for e in range(len(matrices[0]))])


@contextmanager
def residuals(anatomy: Anatomy) -> Iterator[Callable[[int], Tensor | None]]:
    """Gives the residual stream before each MoE block, during a forward: the input of the norm whose output enters the block.

    Found by identity of tensors, not by name: the norm of the decoder layer whose output is the block's input. None where no norm
    feeds the block (the block then adds to a stream that cannot be seen from outside).
    """
    normed: dict[int, tuple[Tensor, weakref.ref[Tensor]]] = {}
    before: dict[int, Tensor | None] = {}
    with ExitStack() as stack:
        for position, layer in enumerate(anatomy.layers):

            def note(_: nn.Module, args: Any, output: Any, position: int = position) -> None:
                if isinstance(output, Tensor) and args and isinstance(args[0], Tensor):
                    normed[position] = args[0], weakref.ref(output)

            def enter(_: nn.Module, args: Any, kwargs: Any, position: int = position) -> None:
                stream, output = normed.pop(position, (None, lambda: None))
                before[position] = (
                    stream if output() is (args[0] if args else kwargs.get("hidden_states")) else None
                )

            parent = anatomy.model.get_submodule(layer.name.rpartition(".")[0])
            for name, module in parent.named_children():
                if module is not layer.block and "norm" in name:
                    stack.callback(module.register_forward_hook(note).remove)
            stack.callback(layer.block.register_forward_pre_hook(enter, with_kwargs=True).remove)
        yield lambda position: before.pop(position)
