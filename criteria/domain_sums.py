"""The running sums of one MoE layer, kept apart by the domain of the text."""

from collections.abc import Collection, Mapping
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from criteria.layer_sums import SUMMED, Call, LayerSums, Tokens
from criteria.replacement_sums import ReplacementSums
from experts.arrays import Array
from experts.seam import ExpertOutputs


class DomainSums:
    """Sums of D domains.

    Args:
        num_experts: E
        domains: D
        forms: of `criteria.razor.FORMS` that are summed
        device: where the sums are
        pairs: also sum over pairs of experts

    Attributes:
        layers: what the experts do, of every domain [D]
        replacements: what replacing them changes, of every domain [D]
    """

    def __init__(
        self,
        num_experts: int,
        domains: int,
        forms: Collection[str],
        device: torch.device,
        pairs: bool = False,
    ) -> None:
        self.layers = [LayerSums(num_experts, domains, device, pairs=pairs) for _ in range(domains)]
        self.replacements = [ReplacementSums(forms, num_experts, device) for _ in range(domains)]

    def add(self, call: Call, change: Mapping[str, Tensor]) -> None:
        """Add one experts call.

        Args:
            call: in numbers
            change: δ of its pairs by form [S]
        """
        if len(self.layers) == 1:
            self._add(0, call, change)
            return
        for domain in range(len(self.layers)):
            pairs = call.domain == domain
            part = {form: values[pairs] for form, values in change.items()}
            self._add(domain, _part(call, domain, pairs), part)

    def _add(self, domain: int, call: Call, change: Mapping[str, Tensor]) -> None:
        self.layers[domain].add(call)
        self.replacements[domain].add(call.expert, change)

    def add_pairs(self, seen: ExpertOutputs, index: Tensor, weight: Tensor, tokens: Tokens) -> None:
        """Add what pairs of experts did together, where that is asked for.

        Args:
            seen: the experts' outputs
            index: expert ids [T, k]
            weight: gate weights [T, k]
            tokens: which are no padding, and their domains
        """
        if len(self.layers) == 1:
            self.layers[0].add_pairs(seen, index, weight, None if tokens.all_valid else tokens.valid)
            return
        for domain, layer in enumerate(self.layers):
            layer.add_pairs(seen, index, weight, tokens.valid & (tokens.domain == domain))

    def arrays(self) -> dict[str, Array]:
        """The sums by name [D, …]."""
        parts = [
            {name: getattr(layer, name).cpu().numpy() for name in SUMMED} | replacement.arrays()
            for layer, replacement in zip(self.layers, self.replacements, strict=True)
        ]
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Take up what `arrays` gave."""
        for domain in range(len(self.layers)):
            part = {name: values[domain] for name, values in arrays.items()}
            self.layers[domain].restore(part)
            self.replacements[domain].restore(part)


def _part(call: Call, domain: int, pairs: Tensor) -> Call:
    """The pairs and tokens of one domain."""
    of_tokens = ("active", "active_domain")
    cut = {part.name: getattr(call, part.name)[pairs] for part in fields(call) if part.name not in of_tokens}
    tokens = call.active_domain == domain
    return replace(call, **cut, active=call.active[tokens], active_domain=call.active_domain[tokens])
