"""Interventions on a model, as users call them: experts by their ids, layers by their decoder index."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from experts import ablation
from experts.arguments import check_count, check_kind, choice_of
from experts.errors import ExciseError
from experts.model import Model, check_model, check_plan
from experts.modes import Mode
from experts.plan import Plan


@contextmanager
def restricted(model: Model, plan: Plan) -> Iterator[Model]:
    """Let a model route only to the experts that a plan keeps, inside a `with` block.

    The logits are those of the pruned checkpoint, bit for bit. Afterwards the model is bit-equal to before.

    Args:
        model: a loaded model
        plan: experts to keep; of this model

    Raises:
        ExciseError: the plan is for another model, or the model is restricted already.

    Example:
        >>> import experts
        >>> model = experts.load("demo")
        >>> plan = experts.Plan(16, {layer: tuple(range(8)) for layer in model.shape.layers})
        >>> with experts.restricted(model, plan):
        ...     half = model.generate("def ", max_new_tokens=4)
    """
    check_plan(model, plan)
    with ablation.restricted(model.anatomy, plan):
        yield model


@contextmanager
def ablated(
    model: Model,
    removed: Mapping[int, Sequence[int]],
    *,
    mode: Mode | str = Mode.ZERO,
    means: Tensor | None = None,
) -> Iterator[Model]:
    """Remove experts at every token, inside a `with` block; the router keeps its size.

    Args:
        model: a loaded model
        removed: decoder layer -> ids of the experts to remove there
        mode: what removal means: zero (their output is 0), renormalize (and the other gate weights keep
            their sum), reroute (the router chooses again without them), mean (their output is its mean)
        means: mean output of every expert [L, E, H], for mode mean (`experts.effects.means.mean_outputs`)

    Raises:
        ExciseError: a layer has no experts, an id is out of range, or the mode is unknown.

    Example:
        >>> import experts
        >>> model = experts.load("demo")
        >>> with experts.ablated(model, {0: [3, 5]}, mode="reroute"):
        ...     without = model.generate("def ", max_new_tokens=4)
    """
    check_model(model)
    check_kind("removed", removed, Mapping, "decoder layer -> expert ids, as in {0: [3, 5]}")
    marks = {}
    for layer, ids in removed.items():
        _check_ids(model, layer, ids)
        marks[model.shape.layers.index(layer)] = ablation.marked(model.anatomy, *ids)
    with ablation.ablated(model.anatomy, marks, mode_of(mode), means):
        yield model


def mode_of(mode: Mode | str) -> Mode:
    """The mode of that name. Raises ExciseError with the names there are."""
    return choice_of("mode", mode, Mode)


def _check_ids(model: Model, layer: int, ids: Sequence[int]) -> None:
    shape = model.shape
    if layer not in shape.layers:
        raise ExciseError(
            f"layer {layer} is dense or absent; the layers with experts are {list(shape.layers)}"
        )
    check_kind(f"removed, layer {layer}", ids, Collection, "a list of expert ids")
    for expert in ids:
        check_count(f"removed, layer {layer}: an expert", expert, 0)
        if not 0 <= expert < shape.num_experts:
            last = shape.num_experts - 1
            raise ExciseError(
                f"layer {layer}: expert {expert} is out of range; a layer has experts 0 to {last}"
            )
