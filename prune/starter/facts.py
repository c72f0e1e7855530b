"""What a model allows: the numbers that the comments of a new recipe name. From headers alone."""

from dataclasses import dataclass

from criteria.budget import from_fraction, from_keep
from experts.disk.configuration import positive_int, text_config
from experts.disk.find import find_model
from experts.disk.layout import Layout, lay_out
from experts.errors import ExciseError
from prune.checkpoint.rehearsal import trial_plans
from prune.checkpoint.slices import pruned_size
from prune.forecast.memory import weights_in
from prune.starter.defaults import FRACTION, window_length
from prune.starter.request import model_name

MULTIPLES = (8, 4, 16)  # that serving engines ask for; the first that fits is shown


@dataclass(frozen=True)
class Facts:
    """A model, as a recipe sees it.

    Attributes:
        model: its name in a recipe.
        layout: its tensors and shape.
        keeps: how many experts a layer may keep, ascending.
        keep: the one nearest to half.
        length: tokens per window that it was made for, at most those of the default.
    """

    model: str
    layout: Layout
    keeps: tuple[int, ...]
    keep: int
    length: int

    @property
    def fraction(self) -> float:
        """The share of the experts that `keep` removes."""
        return 1 - self.keep / self.layout.shape.num_experts

    def size(self, keep: int) -> int:
        """Bytes of all tensors with so many experts in every layer."""
        plan = trial_plans(self.layout.shape, from_keep(self.layout.shape, keep, "layer"))[0]
        return pruned_size(self.layout, plan)

    def weights(self, dtype: str) -> int:
        """Bytes of the unpruned weights in memory."""
        return weights_in(self.layout, dtype)

    def logits(self, batch: int) -> int:
        """Bytes of the logits of a batch in float32."""
        vocabulary = positive_int(text_config(self.layout.checkpoint.config), "vocab_size") or 0
        return 4 * batch * self.length * vocabulary

    @property
    def multiple(self) -> int | None:
        """A multiple that some count divides by."""
        fits = [number for number in MULTIPLES if self.counts_of(number)]
        return fits[0] if fits else None

    def counts_of(self, multiple: int) -> list[int]:
        """The counts that divide by a number."""
        return [keep for keep in self.keeps if keep % multiple == 0]


def facts_of(name: str) -> Facts:
    """Read a model's headers.

    Args:
        name: folder, `demo`, or name on the hub.

    Raises:
        ExciseError: there is no such model, or none of its experts can be removed.
    """
    model = model_name(name) if name != "demo" else name
    layout = lay_out(find_model(model).headers())
    keeps = tuple(keep for keep in range(1, layout.shape.num_experts) if _is_possible(layout, keep))
    if not keeps:
        shape = layout.shape
        raise ExciseError(
            f"{name}: no expert can be removed, {shape.num_experts} per layer are the fewest "
            f"that can route {shape.top_k} per token"
        )
    return Facts(model, layout, keeps, _half(layout, keeps), window_length(layout))


def _is_possible(layout: Layout, keep: int) -> bool:
    try:
        from_keep(layout.shape, keep, "layer")
    except ExciseError:
        return False
    return True


def _half(layout: Layout, keeps: tuple[int, ...]) -> int:
    """What half of the experts comes to, or the nearest count that is possible."""
    shape = layout.shape
    try:
        return from_fraction(shape, FRACTION, "layer").total // shape.num_layers
    except ExciseError:
        return min(keeps, key=lambda keep: abs(keep - shape.num_experts * (1 - FRACTION)))
