"""Mean output of every expert over the tokens routed to it: what Mode.MEAN puts in its place.

Source: MoNE, https://arxiv.org/abs/2507.00390
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.decoder import Part
from experts.expert_sums import add_by_expert
from experts.seam import ExpertOutputs, Forward, intercepted, see_outputs
from experts.sweep.job import Job
from experts.sweep.record import CleanForward
from experts.sweep.sweep import sweep


def mean_outputs(anatomy: Anatomy, tokens: Tensor, batch: int = 8) -> Tensor:
    """Average f_e(x) over the tokens x that are routed to expert e.

    Args:
        anatomy: the model
        tokens: windows [N, W]
        batch: windows of one forward

    Returns:
        Means [L, E, H], summed in float64, in the model's dtype (at least float32); 0 where no token came. H
        is the width in which the experts work: some have a space of their own.
    """
    job = _Means(anatomy, tokens, batch)
    sweep(anatomy, job)
    sums = [job.sums[row].to(job.counts.device) for row in range(len(job.sums))]
    means = torch.stack(sums) / job.counts.clamp(min=1)[..., None]
    return means.to(torch.promote_types(anatomy.model.dtype, torch.float32))


class _Means(Job):
    """Sums of the experts' outputs."""

    title = "mean outputs"
    head = False
    branches = False
    keep_result = True

    def __init__(self, anatomy: Anatomy, tokens: Tensor, batch: int) -> None:
        self.anatomy, self.windows = anatomy, torch.split(tokens, batch)
        self.num_experts = anatomy.shape.num_experts
        self.sums: dict[int, Tensor] = {}  # made at the first call of a layer, when the width is known
        shape = (len(anatomy.layers), self.num_experts)
        self.counts = torch.zeros(shape, dtype=torch.float64, device=tokens.device)

    @property
    def batches(self) -> int:
        return len(self.windows)

    @property
    def identity(self) -> str:
        return self.title

    def clean(self, batch: int) -> CleanForward:
        return CleanForward.of(self.windows[batch])

    def around(self, batch: int, part: Part) -> AbstractContextManager[None]:  # noqa: ARG002
        def add(row: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
            seen = see_outputs(part.anatomy.layers[row].experts, run, hidden, index, weight)
            self._add(part.rows[row], seen, index)
            return seen.routed

        return intercepted(part.anatomy, add)

    def state(self) -> dict[str, Array]:
        sums = {f"sums {row}": of_row.cpu().numpy() for row, of_row in self.sums.items()}
        return {"counts": self.counts.cpu().numpy(), **sums}

    def restore(self, state: dict[str, Array]) -> None:
        self.counts.copy_(torch.from_numpy(state.pop("counts")))
        for name, of_row in state.items():
            self.sums[int(name.split()[1])] = torch.from_numpy(of_row).to(self.counts.device)

    def _add(self, row: int, seen: ExpertOutputs, index: Tensor) -> None:
        experts = index.reshape(-1)[seen.pair]
        if row not in self.sums:
            width = seen.outputs.shape[1]
            self.sums[row] = torch.zeros(self.num_experts, width, dtype=torch.float64, device=index.device)
        add_by_expert(self.sums[row], experts, seen.outputs.double())
        self.counts[row] += torch.bincount(experts, minlength=self.num_experts).to(self.counts.device)
