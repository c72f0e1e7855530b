"""Measure, inside the observing pass, what replacing an expert changes at every token."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from criteria.layer_sums import Tokens
from criteria.replacement import ROUTED_AGAIN, Routed, changes
from experts.ablation import record_input
from experts.anatomy import Anatomy
from experts.errors import ExciseError
from experts.rerouting import entering, rerouted_without_each
from experts.routing import CORRECTION_BIAS
from experts.rows import places
from experts.seam import ExpertOutputs, Forward

WAY_OUT = "use razor:form=loo or razor:form=rcs, for which nobody enters"


def check_routes_again(anatomy: Anatomy, forms: Collection[str]) -> None:
    """Refuse, before any work, forms that need a router to choose again where it cannot.

    Raises:
        ExciseError: no expert is left to enter, or groups cannot lose a single expert.
    """
    needs, shape = sorted(ROUTED_AGAIN.intersection(forms)), anatomy.shape
    if not needs:
        return
    if shape.top_k >= shape.num_experts:
        raise ExciseError(
            f"razor:form={needs[0]}: needs k + 1 experts, and every token uses all of the "
            f"{shape.num_experts} (num_experts_per_tok = {shape.top_k}); {WAY_OUT}"
        )
    biased = all(any(key == CORRECTION_BIAS for _, key in layer.router_tensors) for layer in anatomy.layers)
    if shape.groups > 1 and not biased:
        raise ExciseError(
            f"razor:form={needs[0]}: this router chooses among {shape.groups} groups without a correction "
            f"bias, and cannot lose a single expert; {WAY_OUT}"
        )


class Replacing:
    """δ of every pair in an experts call, by form.

    Args:
        anatomy: the model, or a part of it
        forms: of `criteria.razor.FORMS`
    """

    def __init__(self, anatomy: Anatomy, forms: Collection[str]) -> None:
        self.anatomy, self.forms = anatomy, forms
        self.block_inputs: dict[int, Tensor] = {}

    def __call__(
        self,
        row: int,
        run: Forward,
        hidden: Tensor,
        index: Tensor,
        weight: Tensor,
        seen: ExpertOutputs,
        tokens: Tokens,
    ) -> Mapping[str, Tensor]:
        """Return δ of the call's pairs without padding, in the order of `criteria.layer_sums.Call` [S].

        Args:
            row: place of the layer
            run: the call underneath
            hidden: what enters the experts [T, H]
            index: expert ids [T, k]
            weight: gate weights [T, k]
            seen: the experts' outputs
            tokens: which of them are padding
        """
        if not self.forms:
            return {}
        k, num_experts = index.shape[1], self.anatomy.shape.num_experts
        valid = slice(None) if tokens.all_valid else tokens.valid
        routed = Routed(index[valid], weight[valid], places(seen.pair).view(-1, k)[valid], seen)
        if ROUTED_AGAIN.intersection(self.forms):
            block_input = self.block_inputs.pop(row)
            entered = block_input.reshape(len(index), -1)[valid]
            routed = self._again(row, run, hidden[valid], entered, routed)
        found = changes(routed, self.forms, num_experts)
        pair = seen.pair if tokens.all_valid else seen.pair[tokens.valid[seen.pair // k]]
        place = torch.zeros(len(index), dtype=torch.long, device=index.device)
        place[valid] = torch.arange(len(routed.index), device=index.device)
        return {form: values[place[pair // k], pair % k] for form, values in found.items()}

    def _again(self, row: int, run: Forward, hidden: Tensor, entered: Tensor, routed: Routed) -> Routed:
        """The same tokens with the routing without each of their experts."""
        experts = self.anatomy.layers[row].experts
        again = rerouted_without_each(self.anatomy, row, entered, routed.index, routed.weight)
        new = entering(experts, run, hidden, routed.index, again, self.anatomy.shape.num_experts)
        return Routed(routed.index, routed.weight, routed.outputs, routed.seen, again, new)


@contextmanager
def replacing(anatomy: Anatomy, forms: Collection[str]) -> Iterator[Replacing]:
    """Inside the block what enters the MoE blocks is recorded, where a router has to see it again."""
    found = Replacing(anatomy, forms)
    with ExitStack() as stack:
        if ROUTED_AGAIN.intersection(forms):
            for row in range(len(anatomy.layers)):
                stack.callback(record_input(anatomy, row, found.block_inputs))
        yield found
