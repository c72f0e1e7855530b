"""Running sums of what replacing an expert changes, of one MoE layer."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from experts.arrays import Array
from experts.expert_sums import add_by_expert

NAME = "replacement"  # in states and files: replacement/<form>


class ReplacementSums:
    """Per form: number of tokens with a finite δ, Σ δ and Σ δ², in float64 on the model's device.

    Attributes:
        by_form: form -> [E, 3]
    """

    def __init__(self, forms: Collection[str], num_experts: int, device: torch.device) -> None:
        self.by_form = {
            form: torch.zeros(num_experts, 3, dtype=torch.float64, device=device) for form in sorted(forms)
        }

    def add(self, expert: Tensor, change: Mapping[str, Tensor]) -> None:
        """Add the pairs of a call.

        Args:
            expert: id of each pair [S]
            change: form -> δ of each pair [S]; one that is not finite is left out, and not counted
        """
        for form, sums in self.by_form.items():
            finite = change[form].isfinite()
            value = change[form].double().where(finite, 0.0)
            add_by_expert(sums, expert, torch.stack([finite.double(), value, value * value], dim=-1))

    def arrays(self) -> dict[str, Array]:
        """The sums by the names of their form."""
        return {f"{NAME}/{form}": sums.cpu().numpy() for form, sums in self.by_form.items()}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Take up sums by name."""
        for form, sums in self.by_form.items():
            sums.copy_(torch.from_numpy(arrays[f"{NAME}/{form}"].copy()))
