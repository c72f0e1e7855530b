"""The refit of a pruned model, as users call it: least squares, and where it is asked for training."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from criteria.text.windows import Windows
from experts.ablation import check_untouched, restricted
from experts.arguments import check_kind
from experts.errors import ExciseError
from experts.model import Model, check_plan
from experts.notes import tell
from experts.plan import Plan
from finetune.distill.settings import Local
from finetune.refit.plans import refit_plans
from finetune.refit.request import Request
from finetune.refit.result import FULL, Refit, RefittedLayer, swapped


def refit_experts(
    model: Model,
    plan: Plan,
    text: Windows,
    *,
    form: str = FULL,
    local: Local | None = None,
    ridge: float | None = None,
    fewest: int = 16,
    batch: int = 8,
) -> Refit:
    """Refit the kept experts' down projections, so that the pruned stream stays close to the clean one.

    Layer by layer upwards, with the windows in the state of the whole model (c) and of the pruned, already
    refitted one (p). Z [T, K·I] is what enters the down projections of the K kept experts, times the gate
    weights; E [T, H] is the clean stream after the layer less the pruned one. The change of the stacked down
    projections W is

        ΔW = (ZᵀZ + λ·mean diag(ZᵀZ)·I)⁻¹ Zᵀ E

    Names and shapes stay. λ is chosen in every layer on two halves of the text, each judged by what the other
    one gave; λ = ∞ (no change) is among the choices. Costs about four plain forwards of the text, and the
    solving. Nothing is trained, unless `local` asks for it: then the routed block of every layer is trained
    after its least squares, on the same text and towards the same stream (docs/methods.md, 9). Much of what
    pruned models gain by this random plans gain, too: a claim about a criterion needs random plans with the
    same refit.

    Args:
        model: a loaded model, resident or streamed
        plan: experts to keep
        text: windows to refit on; never those of a test
        form: full; or scale: one factor of all down projections of a layer instead of ΔW, for routers that do
            not renormalise; taken where the factor of one half of the text helps on the other
        local: how every layer is trained afterwards; None = nothing is trained
        ridge: λ above 0; None = chosen
        fewest: an expert that fewer tokens go to stays as it is
        batch: windows per forward

    Raises:
        ExciseError: the plan is for another model, the text is too short, inner activations cannot be seen on
            this model, or the equations have no solution.

    Example:
        >>> import criteria, experts, finetune
        >>> model = experts.load("demo")
        >>> text = criteria.windows(model, stdlib="code", split="calibration", sequences=8, length=64)
        >>> plan = criteria.select(criteria.score(model, "reap_sum", text), fraction=0.5)
        >>> refit = finetune.refit_experts(model, plan, text)
        >>> all(layer.after <= layer.before for layer in refit.layers)
        True
    """
    return refit_by(Request(text, ridge, fewest, batch, form, local).of_model(model), model, plan)


def refit_by(request: Request, model: Model, plan: Plan) -> Refit:
    """The refit of a plan. request: of this model."""
    check_plan(model, plan)
    model.shape.check_kept(plan.kept)
    check_untouched(model.anatomy)
    [found] = refit_plans(model.anatomy, [plan], request, {plan.digest})
    return refit_of(model, plan, request, found.layers)


def refit_of(model: Model, plan: Plan, request: Request, layers: tuple[RefittedLayer, ...]) -> Refit:
    """The refit of a plan from its layers; names experts that stay unchanged."""
    for layer in layers:
        if layer.unchanged:
            ids = ", ".join(map(str, layer.unchanged))
            tell(f"refit: too few tokens go to experts {ids} of layer {layer.layer}: they stay as they are")
    key, text = request.key_on(model.identity), request.text.summary()
    return Refit(plan, layers, text, key, model.fingerprint, request.local, request.form)


@contextmanager
def refitted(model: Model, refit: Refit) -> Iterator[None]:
    """Inside the `with` block the model is the pruned and refitted one, for forwards and generation.

    What measures or changes plans starts from the unpruned model and is refused inside. `prune.export` reads
    the source's files, inside as outside: give it the refit.

    Args:
        model: the model that was refitted, resident
        refit: of `refit_experts`

    Raises:
        ExciseError: the model is streamed, or another one than was refitted.

    Example:
        >>> import criteria, experts, finetune
        >>> model = experts.load("demo")
        >>> text = criteria.windows(model, stdlib="code", split="calibration", sequences=8, length=64)
        >>> plan = experts.Plan(16, {layer: tuple(range(8)) for layer in model.shape.layers})
        >>> with finetune.refitted(model, finetune.refit_experts(model, plan, text, ridge=0.1)):
        ...     again = model.generate("def ", max_new_tokens=4)
    """
    check_kind("refit", refit, Refit, "what finetune.refit_experts returns")
    model.check_resident("a refitted model")
    if refit.fingerprint != model.fingerprint:
        raise ExciseError("refit: its weights are of another model; refit this one")
    anatomy = model.anatomy
    with ExitStack() as stack:
        stack.enter_context(restricted(anatomy, refit.plan))
        for layer, change in zip(anatomy.layers, refit.layers, strict=True):
            kept = refit.plan.kept[layer.index]
            stack.enter_context(swapped(layer, kept, change.weights, change.others))
        yield
