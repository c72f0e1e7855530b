"""Run the clean forward, and branches of it, over parts of a model."""

from contextlib import ExitStack, suppress
from typing import NoReturn

from torch import Tensor

from experts.anatomy import Anatomy
from experts.decoder import Part, decoder_layers, part_of
from experts.seam import Forward, intercepted
from experts.sweep.branch import Branch
from experts.sweep.masks import masked
from experts.sweep.record import CleanForward, at_positions, begun, recorded
from experts.sweep.stage import Stage, State, stream_of


class _Stopped(Exception):  # noqa: N818 - not an error: the way out of a forward whose rest is not needed
    """The experts are reached."""


class Runner:
    """Knows how clean forwards and branches go through some decoder layers whose weights are in memory.

    Args:
        anatomy: the model
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy, self.stage = anatomy, Stage(anatomy)
        self.layers = decoder_layers(anatomy)

    @property
    def whole(self) -> Part:
        """The model as a single part."""
        return part_of(self.anatomy, range(len(self.layers)))

    def prefix(self, part: Part, clean: CleanForward, state: State | None, row: int) -> None:
        """Run the model as it is, up to the experts of a MoE layer in this part: branches are born there."""
        first = self.anatomy.layers[row].index
        below = part_of(self.anatomy, range(part.span.start, first + 1))
        with (
            recorded(self.anatomy, below, clean) as watch,
            intercepted(part_of(self.anatomy, range(first, first + 1)).anatomy, _stop),
            suppress(_Stopped),
        ):
            self.stage.run(below.span, state, clean.inputs, watch=watch)

    def clean(
        self, part: Part, clean: CleanForward, state: State | None, *, head: bool = True, record: bool = True
    ) -> State | Tensor | None:
        """Run the model as it is.

        Args:
            part: the layers that are computed
            clean: takes what later branches need
            state: what enters the first layer; None = the embeddings of the tokens
            head: compute logits after the last layer
            record: whether branches may be born in these layers, or copies go through them

        Returns:
            What enters the next layer; after the last one the logits [B, W, V], or None without head.
        """
        if not record:
            return self.stage.run(part.span, state, clean.inputs, head=head)
        if clean.prefix is not None:
            clean.prefix.length = 0  # keys and values are written
        with recorded(self.anatomy, part, clean) as watch:
            output = self.stage.run(part.span, state, clean.inputs, head=head, watch=watch)
        if clean.prefix is not None:
            clean.prefix.length = clean.tokens.shape[1]
        return output

    def branch(
        self, part: Part, branch: Branch, clean: CleanForward, state: State | None
    ) -> State | Tensor | None:
        """Run a branch.

        Args:
            part: the layers that are computed
            branch: what is changed in them
            clean: the clean forward of the same windows over these layers
            state: what enters the first layer; None = the branch is born in this part

        Returns:
            What enters the next layer, or the logits after the last one.
        """
        with ExitStack() as stack:
            attending = part.span  # layers whose attention runs
            if state is None and branch.row is not None:
                first = self.anatomy.layers[branch.row].index
                part = part_of(self.anatomy, range(first, part.span.stop))
                attending = part.span[int(branch.begins_at_experts) :]
                state = self._born(stack, branch, clean, first)
            if branch.position is not None and state is not None:
                copies = masked(self.layers, attending, clean, branch.position, stream_of(state).dtype)
                stack.enter_context(copies)
            stack.enter_context(branch.change(part))
            return self.stage.run(part.span, state, branch.inputs(clean))

    def _born(self, stack: ExitStack, branch: Branch, clean: CleanForward, first: int) -> State:
        """What enters the layer that a branch is born in. stack: takes what holds while it runs."""
        shape, position = clean.tokens.shape, branch.position
        if branch.begins_at_experts:
            stack.enter_context(begun(self.layers[first], clean.before[first], position, shape))
        entering = clean.states[first].items()
        return {key: at_positions(value, position, shape) for key, value in entering}


def _stop(row: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> NoReturn:  # noqa: ARG001
    """A handler that ends the forward."""
    raise _Stopped
