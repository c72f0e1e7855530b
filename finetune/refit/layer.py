"""The refit of one layer: what it lacks, the change of its down projections, and the weights that result."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from experts.anatomy import MoELayer
from experts.errors import ExciseError
from experts.inner_activations import DOWN, Features, check_inner, features_of, see_inner
from experts.seam import Forward
from finetune.distill.block import check_block, trainable_block
from finetune.distill.examples import Collected, entering_block
from finetune.distill.settings import Local
from finetune.distill.train import Distilled, distilled
from finetune.refit.equations import Equations, NoSolution
from finetune.refit.passage import CLEAN, PRUNED, Passage
from finetune.refit.precision import Precision
from finetune.refit.result import FULL, SCALE, RefittedLayer, swapped
from finetune.refit.scale import Scale

# Largest share of noise in the stream that is not what was added to the experts' sum, by precision.
ADDS = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}
# Makes the equations of K experts of I inner units, width H, on a device.
NewEquations = Callable[[int, int, int, torch.device], Equations]


@dataclass(frozen=True)
class _Seen:
    """A batch in the pruned model: features, routed output [T, H], and the stream after the layer [T, H]."""

    features: list[Features]
    routed: Tensor
    stream: Tensor


@dataclass(frozen=True)
class LayerRefit:
    """One MoE layer at work; what enters it is there, of both ways.

    Attributes:
        passage: the windows
        row: place of the layer among the L MoE layers
        ridge: λ; None = chosen on the text
        fewest: tokens below which an expert stays as it is
        equations: makes those of the layer
        local: how the layer is trained afterwards; None = it is not
        form: FULL or SCALE
        precision: in which the checkpoint stores the layer; None = as it is in memory
    """

    passage: Passage
    row: int
    ridge: float | None
    fewest: int
    equations: NewEquations
    local: Local | None = None
    form: str = FULL
    precision: Precision | None = None

    @property
    def layer(self) -> MoELayer:
        """The layer."""
        return self.passage.anatomy.layers[self.row]

    @property
    def kept(self) -> tuple[int, ...]:
        """Its experts that the plan keeps."""
        return self.passage.plan.kept[self.layer.index]

    def run(self, *, last: bool) -> RefittedLayer:
        """Refit the layer, and take the batches of both ways to the next one.

        Args:
            last: there is no next one

        Raises:
            ExciseError: its experts' inner activations cannot be seen, or do not simply add to the stream; or
                the equations have no solution.
        """
        examples = Collected(len(self.passage.windows), self.passage.windows.tokens.shape[1])
        equations = self._filled(self.factor(), examples, go=not last)
        few = [place for place, rows in enumerate(equations.rows.tolist()) if rows < self.fewest]
        for place in few:
            equations.leave(place)
        ridge, change = self._solved(equations)
        weights = {DOWN: self._changed(change)}
        trained = None
        if self.local is not None:
            trained, weights = self._trained(weights, examples, few)
        if self.precision is not None:
            weights = {name: self.precision.rounded(name, values) for name, values in weights.items()}
        down, others = weights.pop(DOWN), weights
        if not last:
            with swapped(self.layer, self.kept, down, others):
                for batch in range(len(self.passage)):
                    self.passage.leaving(self.layer.index, PRUNED, batch, go=True)
        return RefittedLayer(
            layer=self.layer.index,
            inner=self._widths[1],
            ridge=ridge,
            before=equations.left(None),
            after=equations.left(change),
            rows=tuple(equations.rows.tolist()),
            unchanged=tuple(self.kept[place] for place in few),
            weights=down.cpu(),
            distilled=trained,
            others={name: values.cpu() for name, values in others.items()},
        )

    def factor(self) -> float:
        """What the block multiplies its experts' sum with before it adds that to the stream.

        Raises:
            ExciseError: inner activations cannot be seen, or the sum does not simply add to the stream.
        """
        try:
            check_inner(self.layer.experts)
            return self._factor()
        except ExciseError as error:
            raise ExciseError(f"{self.layer.name}: cannot be refitted: {error}") from error

    def _factor(self) -> float:
        """Measured: noise is added to the experts' sum of the first batch, and looked for in the stream."""
        added: list[Tensor] = []

        def push(_: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
            routed = run(hidden, index, weight)
            noise = torch.randn(routed.shape, generator=torch.Generator().manual_seed(0))
            added.append(noise.to(routed) * routed.std())
            return routed + added[0]

        plain = self.passage.leaving(self.layer.index, PRUNED, 0, go=False).double()
        pushed = self.passage.leaving(self.layer.index, PRUNED, 0, push, go=False)
        if pushed.shape != added[0].shape:
            tokens, width = added[0].shape
            stream = pushed.numel() // tokens
            raise ExciseError(f"its experts return {width} numbers a token, and the stream has {stream}")
        arrived, noise = pushed.double() - plain, added[0].double()
        factor = float((arrived * noise).sum() / noise.square().sum())
        gap = torch.linalg.vector_norm(arrived - factor * noise)
        rounding = torch.finfo(pushed.dtype).eps * torch.linalg.vector_norm(plain)
        if gap > ADDS[pushed.dtype] * torch.linalg.vector_norm(arrived) + rounding:
            raise ExciseError("what its experts return does not simply add to the residual stream")
        return factor

    def _filled(self, factor: float, examples: Collected, *, go: bool) -> Equations:
        """The equations of all batches, each in its half of the text.

        Args:
            factor: of the experts' sum in the stream
            examples: take what the layer is trained on, if it is
            go: whether CLEAN goes on
        """
        equations = self._equations()
        for batch in range(len(self.passage)):
            clean = self.passage.leaving(self.layer.index, CLEAN, batch, go=go)
            with self._entering() as entering:
                seen = self._seen(batch)
            readable = self.passage.readable[batch].to(clean.device)
            lacking = (clean.double() - seen.stream.double()) * readable[:, None] / factor
            equations.add(self.passage.folds[batch], seen.features, lacking)
            if entering is not None:
                if batch == 0:
                    num_experts = self.passage.anatomy.shape.num_experts
                    check_block(self.layer, self.kept, num_experts, entering[0], seen.routed)
                examples.add(entering.pop(), seen.routed + lacking, readable)
        return equations

    def _equations(self) -> Equations:
        """Those of the layer, without text."""
        width, inner = self._widths
        if self.form == SCALE:
            kept = self._down[list(self.kept)]
            return Scale(kept if self._transposed else kept.transpose(1, 2))
        return self.equations(len(self.kept), inner, width, self._down.device)

    def _entering(self) -> AbstractContextManager[list[Tensor] | None]:
        """Collects what enters the block, where that is wanted."""
        return nullcontext() if self.local is None else entering_block(self.layer)

    @property
    def _down(self) -> Tensor:
        """Down projections of all experts [E, H, I], or transposed."""
        found: Tensor = self.layer.experts.get_parameter(DOWN)
        return found.detach()

    @property
    def _widths(self) -> tuple[int, int]:
        """H and I."""
        first, second = self._down.shape[1:]
        return (second, first) if self._transposed else (first, second)

    @property
    def _transposed(self) -> bool:
        """Whether down projections are stored [I, H]."""
        return bool(self.layer.experts.is_transposed)

    def _seen(self, batch: int) -> _Seen:
        """What the pruned model makes of a batch. Padding has no part in the features."""
        readable, found, outputs = self.passage.readable[batch], list[Features](), list[Tensor]()

        def see(_: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
            seen = see_inner(self.layer.experts, run, hidden, index, weight)
            found.extend(features_of(seen, index, weight, self.kept, readable))
            outputs.append(seen.routed)
            return seen.routed

        stream = self.passage.leaving(self.layer.index, PRUNED, batch, see, go=False)
        return _Seen(found, outputs.pop(), stream)

    def _solved(self, equations: Equations) -> tuple[float, Tensor]:
        """λ, and the change of all kept experts [K, I, H]."""
        try:
            ridge = equations.best_ridge() if self.ridge is None else self.ridge
            return ridge, equations.solution(ridge)
        except NoSolution as error:
            expert = self.kept[error.unknown // self._widths[1]]
            raise ExciseError(
                f"{self.layer.name}: the equations of the refit have no solution at expert {expert}; "
                "raise ridge, or look whether the model is sound in this dtype"
            ) from error

    def _changed(self, change: Tensor) -> Tensor:
        """The kept experts' down projections [K, …] after a change [K, I, H], in the model's precision."""
        before = self._down[list(self.kept)]
        turned = change if self._transposed else change.transpose(1, 2)
        changed: Tensor = (before.double() + turned).to(before.dtype)
        return changed

    def _trained(
        self, refitted: dict[str, Tensor], examples: Collected, few: list[int]
    ) -> tuple[Distilled, dict[str, Tensor]]:
        """Train the block from its refitted weights on.

        Args:
            refitted: down projections [K, …] by their name
            examples: of all batches
            few: places of experts that stay as they are

        Returns:
            What it came to, and all that is changed by name [K, …].
        """
        assert self.local is not None, "asked before"
        num_experts = self.passage.anatomy.shape.num_experts
        with trainable_block(self.layer, self.kept, num_experts, refitted) as block:
            found, weights = distilled(block, examples.examples(), self.local, few)
        return found, weights if found.step else refitted
