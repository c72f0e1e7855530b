"""What each command computes, stage by stage, in forwards of one window."""

from collections.abc import Callable, Iterable

import numpy as np

from criteria.budget import Budget, deepest
from criteria.text.sampled.settings import GROUP
from criteria.text.shares import shares
from finetune.allocation.grid import Grid
from prune.forecast.criterion_cost import calibration_passes
from prune.forecast.result import StageJson
from prune.recipe.schema import TextSettings
from prune.session.prepared import Checked

Stages = list[StageJson]
TEST = "test"  # the stage of all plans on held-out text
REFIT = 4  # forwards of the text of a refit: the whole model, and the pruned one three times
DRAW = 6  # a window that the model writes token by token, in plain forwards; on the demo, with one thread
BACKWARD = 3  # a training step on a window, in plain forwards: forward and backward


def stages_of(command: str, checked: Checked) -> Stages:
    """The stages of a command, in order."""
    finetune = checked.recipe.finetune
    if command == "finetune" and finetune is not None and finetune.checkpoint:
        return _training(checked)
    return STAGES[command](checked)


def _pruning(checked: Checked) -> Stages:
    own = checked.budgets[checked.recipe.prune.scope]
    tested, sets = checked.tested
    return [
        *_calibration(checked, [own]),
        *_allocation(checked, [own]),
        *_tests(checked, tested, sets),
        *_refits(checked, tested, sets),
        *(_training(checked) if checked.recipe.finetune else []),
    ]


def _comparison(checked: Checked) -> Stages:
    budgets, criteria = checked.compared, len(checked.criteria)
    sets = sum(criteria if budget.scope == "global" else 1 for budget in budgets)
    return [
        *_calibration(checked, deepest(budgets).values()),
        *_repeated_calibration(checked),
        *_allocation(checked, budgets),
        *_tests(checked, criteria * len(budgets), sets),
        *_refits(checked, criteria * len(budgets), sets),
    ]


def _audit(checked: Checked) -> Stages:
    settings, windows = checked.recipe.validation.audit, checked.recipe.validation
    layers, top_k = len(set(settings.layers or checked.shape.layers)), checked.shape.top_k
    positions = settings.positions
    if positions == "all":
        positions = windows.sequences * (windows.length - 1)
    audit = _stage(
        "audit",
        None,
        windows,
        f"{layers} layers × {positions:,} positions × {top_k} active experts = "
        f"{layers * positions * top_k:,} removals, each from its layer on",
    )
    own = checked.budgets[checked.recipe.prune.scope]
    return [*_calibration(checked, [own]), audit, *_curves(checked, layers)]


def _curves(checked: Checked, layers: int) -> Stages:
    settings = checked.recipe.validation.progressive
    if settings is None:
        return []
    shape = checked.shape
    removed = min(settings.max_removed, shape.num_experts - shape.smallest)
    windows = min(settings.windows, checked.recipe.validation.sequences)
    orders = 2 * len(checked.criteria) + settings.draws
    return [
        _stage(
            "curves",
            layers * orders * removed * windows,
            checked.recipe.validation,
            f"at most: {layers} layers × {orders} orders × {removed} experts × {windows} windows; "
            f"and {settings.positions} positions a layer",
        )
    ]


def _calibration(checked: Checked, budgets: Iterable[Budget]) -> Stages:
    """A row per pass over the calibration text; a search is repeated in every scope."""
    text = checked.recipe.calibration
    windows = text.sequences
    drawn = _drawn("sampled text", text)
    rows: dict[tuple[str, float], StageJson] = {}
    for budget in budgets:
        for cost in calibration_passes(checked.criteria, checked.shape, budget, windows):
            detail = f"{cost.forwards:.3g} plain forwards of {windows} windows"
            row = _stage(f"calibration: {cost.name}", round(cost.forwards * windows), text, detail)
            rows[cost.name, cost.forwards] = row
    return [*drawn, *rows.values()]


def _allocation(checked: Checked, budgets: Iterable[Budget]) -> Stages:
    """One layer cut and refitted at a time: half of the text to its end, the other half on to the top."""
    chosen = [budget for budget in budgets if budget.scope == "global"]
    if checked.recipe.prune.counts == "scores" or checked.recipe.refit is None or not chosen:
        return []
    text, layers = checked.recipe.refit.text or checked.recipe.calibration, checked.shape.num_layers
    unprotected = np.zeros((layers, checked.shape.num_experts), dtype=bool)
    counts = len(Grid(checked.shape, chosen[0], unprotected).measured)
    rankings = sum(len(chosen) if criterion.searches else 1 for criterion in checked.criteria)
    whole = 0.75 * text.sequences * layers  # the unpruned model below and beside every layer's cuts
    cuts = layers * counts * text.sequences / 2 * ((layers + 1) / 2 + 1) / layers
    detail = (
        f"{rankings} rankings × {layers} layers × {counts} counts: each a refit of one layer on half of "
        f"{text.sequences} windows, a forward of the others from it on, and the solving, which is not timed"
    )
    return [_stage("counts per layer", round(rankings * (whole + cuts)), text, detail)]


def _drawn(name: str, text: TextSettings) -> Stages:
    """Windows that the model has to write first, in whole groups."""
    asked = [
        count
        for source, count in zip(text.data, shares(text.data, text.sequences), strict=True)
        if source.drawn
    ]
    if not asked:
        return []
    windows = sum(-(-count // GROUP) * GROUP for count in asked)
    detail = f"{windows} windows in groups of {GROUP}, token by token, at about {DRAW} plain forwards each"
    return [_stage(name, windows * DRAW, text, detail)]


def _repeated_calibration(checked: Checked) -> Stages:
    """Stability: cheap criteria again, with other seeds."""
    settings, text = checked.recipe.compare, checked.recipe.calibration
    windows = text.sequences
    again = settings.repeated(checked.criteria)
    seeds = settings.seeds - 1
    if not seeds or not again:
        return []
    deepest_budgets = deepest(checked.compared).values()
    forwards = 0.0
    for budget in list(deepest_budgets)[:1]:
        forwards = sum(cost.forwards for cost in calibration_passes(again, checked.shape, budget, windows))
    detail = f"{seeds} more seeds × {forwards:.3g} plain forwards of {windows} windows"
    return [_stage("stability", round(seeds * forwards * windows), text, detail)]


def _tests(checked: Checked, tested: int, random_sets: int) -> Stages:
    """Every plan by the held-out loss, then by tasks."""
    settings = checked.recipe.validation
    windows, randoms = settings.sequences, settings.random_plans
    plans = 1 + 2 * tested + random_sets * randoms
    each = f"unpruned, {tested} tested, {tested} reversed, {random_sets * randoms} random"
    rows = [_stage(TEST, plans * windows, settings, f"at most {plans} plans ({each}) × {windows} windows")]
    if settings.tasks:
        limited = settings.tasks.random_plans or randoms
        plans = 1 + 2 * tested + random_sets * limited
        items = f"the first {settings.tasks.limit} items" if settings.tasks.limit else "all items"
        names = ", ".join(settings.tasks.names)
        rows.append(_stage("tasks", None, settings, f"at most {plans} plans × {items} of {names}"))
    return rows


def _refits(checked: Checked, tested: int, random_sets: int) -> Stages:
    """Every plan but the unpruned model once more: refitted, and measured."""
    settings, validation = checked.recipe.refit, checked.recipe.validation
    if settings is None:
        return []
    text = settings.text or checked.recipe.calibration
    plans = 2 * tested + random_sets * validation.random_plans
    each = f"{REFIT} forwards of {text.sequences} windows, and the solving, which is not timed"
    drawn = _drawn("sampled refit text", settings.text) if settings.text else []
    return [
        *drawn,
        _stage("refit", None, text, f"at most {plans} plans × ({each}; {validation.sequences} windows)"),
    ]


def _training(checked: Checked) -> Stages:
    """Recovery of the criterion's plan and of random ones; the held-out loss before, during and after."""
    settings, validation = checked.recipe.finetune, checked.recipe.validation
    assert settings is not None, "asked for only where there is one"
    models = 1 + settings.random_plans + settings.unpruned
    step = settings.batch * settings.accumulate
    windows = settings.steps * step if settings.steps else settings.sequences
    teacher = 1 if settings.kl else 0
    forwards = models * windows * (BACKWARD + teacher)
    detail = f"{models} models × {windows:,} windows × {BACKWARD + teacher} (forward, backward"
    drawn = _drawn("sampled training text", settings)
    rows = [*drawn, _stage("recovery", forwards, settings, f"{detail}{', teacher' if teacher else ''})")]
    measured = models * (settings.measure + 2)
    rows.append(
        _stage(
            "curve",
            measured * validation.sequences,
            validation,
            f"about {measured} measurements × {validation.sequences} windows",
        )
    )
    return rows


def _stage(name: str, windows: int | None, text: TextSettings, detail: str) -> StageJson:
    """A stage on windows of a text."""
    return {"stage": name, "windows": windows, "length": text.length, "detail": detail}


STAGES: dict[str, Callable[[Checked], Stages]] = {
    "prune": _pruning,
    "finetune": _pruning,
    "compare": _comparison,
    "audit": _audit,
}
