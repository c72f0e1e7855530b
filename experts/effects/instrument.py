"""What a removal costs: ΔCE and KL(clean ‖ ablated) per position, exact and fast, in three scopes and four modes (METHODS 1.3, 2).

Every fast path is compared with plain replay on a few cells of the model at hand before it is used; where it does not hold (token mixing
other than masked attention, say), plain replay takes its place, and `notes` says so.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from experts.ablation import ablated
from experts.anatomy import Anatomy
from experts.effects.outcome import row_outcomes
from experts.effects.packing import packed
from experts.effects.precision import fits_in_float32, in_float32
from experts.effects.stream import CleanForward, clean_forward, entered
from experts.errors import ExciseError, is_out_of_memory, is_own_mistake, one_line
from experts.memory import chunk_size, in_chunks
from experts.modes import Mode, Scope
from experts.notes import log_traceback

# Largest disagreement with replay that is rounding, in nats. Half precision only where float32 does not fit: two orders of summation differ
# by that much.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
# What a model may raise when it is run in a way it was not made for.
FAILURES = (
    ExciseError,
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    KeyError,
    IndexError,
    AssertionError,
    NotImplementedError,
)
MOST_ROWS = {"cpu": 512, "cuda": 8192}  # beyond that a chunk is not faster


@dataclass
class Instrument:
    """Measures removals on one model. means: mean expert outputs [L, E, H] for Mode.MEAN; notes: what had to be measured the slow way.

    packs, enters: whether the fast paths hold on this model (set by `check`).
    """

    anatomy: Anatomy
    mode: Mode = Mode.ZERO
    means: Tensor | None = None
    probabilities: bool = True
    packs: bool = True
    enters: bool = True
    rows: int | None = None
    notes: list[str] = field(default_factory=list)

    def clean_forward(self, tokens: Tensor, scope: Scope) -> CleanForward:
        """One plain forward of windows [B, W] with what this scope needs of it."""
        return clean_forward(self.anatomy, tokens, scope is Scope.POSITION and self.packs, self.probabilities)

    # Position scope.

    def at_positions(
        self, clean: CleanForward, position: Tensor, removed: Mapping[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """ΔCE and KL [R], float64, of R interventions at single positions of one window.

        position: [R], each below W − 1; removed: layer position -> bool [R, E]. Rows that begin at higher layers are cheaper: call once
        per layer.
        """
        delta, divergence = (
            torch.empty(len(position), dtype=torch.float64, device=position.device) for _ in range(2)
        )

        def work(start: int, stop: int) -> None:
            part = slice(start, stop)
            here = {layer: marks[part] for layer, marks in removed.items()}
            loss, divergence[part] = self._rows(clean, position[part], here)
            delta[part] = loss - clean.losses[0, position[part]]

        self.rows = in_chunks(len(position), self._chunk(clean), work, "intervention")
        return delta, divergence

    def _rows(
        self, clean: CleanForward, position: Tensor, removed: Mapping[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        if self.packs:
            return packed(self.anatomy, clean, position, removed, self.mode, self.means)
        found = [
            self.replay_position(clean, int(t), {layer: marks[row] for layer, marks in removed.items()})
            for row, t in enumerate(position)
        ]
        return torch.stack([loss for loss, _ in found]), torch.stack([divergence for _, divergence in found])

    def _chunk(self, clean: CleanForward) -> int:
        """Rows at once; every row also has a row of the mask and of the attention's scores."""
        if self.rows is None:
            device, config = clean.tokens.device, self.anatomy.model.config.get_text_config()
            most = MOST_ROWS.get(device.type, MOST_ROWS["cuda"])
            scores = 4 * 2 * config.num_attention_heads * (clean.tokens.shape[1] + MOST_ROWS["cpu"])
            self.rows = chunk_size(device, self._bytes_per_token() + scores, most)
        return self.rows

    def windows_at_once(self, tokens: Tensor, most: int) -> int:
        """Windows [N, W] that fit into one forward with what has to be kept of it, from 1 to `most`."""
        return chunk_size(tokens.device, self._bytes_per_token() * tokens.shape[1], most)

    def _bytes_per_token(self) -> int:
        """An estimate: logits and their wide copies, what is kept of every layer, the experts' intermediate values."""
        config = self.anatomy.model.config.get_text_config()
        width = config.hidden_size * (12 + 6 * self.anatomy.shape.top_k + 4 * len(self.anatomy.layers))
        return int(4 * (5 * config.vocab_size + width))

    @torch.no_grad()
    def replay_position(
        self, clean: CleanForward, position: int, removed: Mapping[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Loss and KL at one position by a whole forward of the window with one token changed: the plain way, and the reference."""
        losses, divergences = self._whole(
            clean, {layer: self._only(clean, position, marks) for layer, marks in removed.items()}
        )
        return losses[0, position], divergences[0, position]

    def _only(self, clean: CleanForward, position: int, marks: Tensor) -> Tensor:
        rows = torch.zeros(
            clean.tokens.numel(), self.anatomy.shape.num_experts, dtype=torch.bool, device=clean.tokens.device
        )
        rows[position] = marks
        return rows

    # Sequence and corpus scope.

    def everywhere(
        self, clean: CleanForward, removed: Mapping[int, Tensor], since: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """ΔCE and KL at every position [B, W − 1], float64, with the marked experts (layer position -> bool [E]) removed everywhere.

        since: the lowest layer position where `removed` differs from what `clean` was looked at with; without it, its lowest layer.
        """
        at = self.anatomy.layers[min(removed) if since is None else since].index
        inside = entered(self.anatomy, clean, at) if self.enters else nullcontext()
        losses, divergences = self._whole(clean, removed, inside)
        return losses - clean.losses, divergences

    @torch.no_grad()
    def _whole(
        self,
        clean: CleanForward,
        removed: Mapping[int, Tensor],
        inside: AbstractContextManager[None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        with inside or nullcontext(), ablated(self.anatomy, removed, self.mode, self.means):
            logits = self.anatomy.model(input_ids=clean.tokens, use_cache=False).logits
        windows, length = clean.tokens.shape
        found = []
        for number in range(windows):
            known = None if clean.log_probabilities is None else clean.log_probabilities[number]
            found.append(
                row_outcomes(
                    logits[number, :-1],
                    clean.tokens[number, 1:],
                    known,
                    torch.arange(length - 1, device=logits.device),
                )
            )
        return torch.stack([loss for loss, _ in found]), torch.stack([divergence for _, divergence in found])

    # The check.

    def check(self, tokens: Tensor, scope: Scope) -> float:
        """Compares the fast path of `scope` with plain replay on cells of the first window; gives the largest disagreement in nats.

        A half-precision model is checked in float32 where memory allows: its rounding is larger than many effects. Where the fast path
        fails or disagrees it is switched off and a note is left. Raises ExciseError where replay itself fails.
        """
        if fits_in_float32(self.anatomy):
            with in_float32(self.anatomy.model):
                return self._check(tokens, scope)
        return self._check(tokens, scope)

    def _check(self, tokens: Tensor, scope: Scope) -> float:
        first = tokens[:1]
        try:
            cells = self._cells(clean_forward(self.anatomy, first, probabilities=False))
            plain = torch.cat([self._replayed(first, scope, *cell) for cell in cells])
        except FAILURES as error:
            if isinstance(error, ExciseError) or is_out_of_memory(error) or is_own_mistake(error):
                raise
            raise ExciseError(
                f"removals in mode {self.mode} cannot be measured on this model ({one_line(error)})"
            ) from error
        try:
            gap = float((torch.cat(list(self._fast(first, scope, cells))) - plain).abs().max())
            reason = f"differs from plain replay by {gap:.2g} nats on this model"
        except FAILURES as error:
            if is_out_of_memory(error) or is_own_mistake(error):
                raise
            log_traceback(error, "measuring with whole forwards")
            gap, reason = float("inf"), f"does not run on this model ({one_line(error)})"
        if not gap <= TOLERANCE[self.anatomy.model.dtype]:
            self._fall_back(scope, reason, first.shape[1])
        return gap

    def _cells(self, clean: CleanForward) -> list[tuple[int, int, Tensor]]:
        """(layer position, position, bool [E]): an active expert at three positions in the lowest, middle and highest MoE layer."""
        last, count = clean.tokens.shape[1] - 2, len(self.anatomy.layers)
        eye = torch.eye(self.anatomy.shape.num_experts, dtype=torch.bool, device=clean.tokens.device)
        layers, positions = sorted({0, count // 2, count - 1}), sorted({last // 3, 2 * last // 3, last})
        return [(layer, t, eye[clean.index[layer][0, t, 0]]) for layer in layers for t in positions]

    def _replayed(self, tokens: Tensor, scope: Scope, layer: int, position: int, marks: Tensor) -> Tensor:
        """Losses by whole forwards: at the position, or of the window."""
        clean = CleanForward(tokens, tokens.new_empty(0), None)
        if scope is Scope.POSITION:
            return self.replay_position(clean, position, {layer: marks})[0][None]
        return self._whole(clean, {layer: marks})[0][0]

    def _fast(self, tokens: Tensor, scope: Scope, cells: list[tuple[int, int, Tensor]]) -> Iterator[Tensor]:
        clean = clean_forward(self.anatomy, tokens, scope is Scope.POSITION, False)
        for layer, position, marks in cells:
            if scope is Scope.POSITION:
                where = torch.tensor([position], device=tokens.device)
                yield packed(self.anatomy, clean, where, {layer: marks[None]}, self.mode, self.means)[0]
            else:
                yield self._whole(
                    clean, {layer: marks}, entered(self.anatomy, clean, self.anatomy.layers[layer].index)
                )[0][0]

    def _fall_back(self, scope: Scope, reason: str, length: int) -> None:
        if scope is Scope.POSITION:
            self.packs, name, factor = False, "packing", f"{length // 2} times"
        else:
            self.enters, name, factor = False, "prefix caching", "twice"
        self.notes.append(
            f"{name} {reason}: measuring with whole forwards, which takes about {factor} as long"
        )
