"""razor: what the routed output changes when the router has to replace an expert (docs/methods.md 1.6)."""

from dataclasses import replace
from functools import partial

import numpy as np

from criteria.criterion import TEXT, Criterion, arxiv
from criteria.experiment import Experiment, Option
from criteria.formulas import divide
from criteria.statistics import Statistics
from experts.arrays import Array
from experts.errors import ExciseError

COST = 1.3  # plain forwards, the observed statistics included; measured by benchmarks/calibration.py
WORDS = {"rms": "√mean δ²", "mean": "mean δ", "sum": "Σ δ"}
DELTA = {
    "reroute": "δ = ‖y − y without e, routed again‖",
    "frozen": "δ = ‖g f − g_r f_r‖, r enters, the other g stay",
    "loo": "δ = g / (1 − g/G)·‖f − y/G‖, G = Σ g of the token",
    "rcs": "δ = g·‖f − y/G‖, G = Σ g of the token",
}
FORMS = tuple(DELTA)
FORM = Option(
    "reroute",
    "what replaces the expert: reroute = the router chooses again; frozen = likewise, the other gate weights "
    "stay; loo = nobody, the others are rescaled; rcs = nobody, unscaled residual",
    choices=FORMS,
)
OVER = Option("rms", "over the tokens of an expert: rms = root mean square, mean, sum", choices=tuple(WORDS))
SETTINGS = Experiment("razor", {"form": FORM, "over": OVER})


def razor(statistics: Statistics, form: str = "reroute", over: str = "rms") -> Array:
    """√mean_{X_e} δ², mean_{X_e} δ or Σ_{X_e} δ, δ = ‖y − y^{−e}‖₂ of the routed output y.

    A token at which δ does not exist (loo, where e has the whole gate weight) is left out.

    Source: RAZOR, https://arxiv.org/abs/2609.30465, which takes the root mean square, and for routers that do
    not renormalise the form frozen

    Args:
        statistics: of the text, with the sums of that form
        form: what replaces the expert, a choice of FORM
        over: rms, mean or sum

    Raises:
        ExciseError: the sums were not asked for, or an expert's δ exists at none of its tokens.
    """
    if form not in statistics.replacement:
        ways = "score it with criteria.score, or observe the text with this form"
        raise ExciseError(f"razor:form={form}: these statistics do not have its sums; {ways}")
    count, total, square = np.moveaxis(statistics.replacement[form], -1, 0)
    if (undefined := np.argwhere((count == 0) & ~statistics.unreached)).size:
        row, expert = undefined[0]
        raise ExciseError(
            f"razor:form={form}: does not exist for expert {expert} of MoE layer {row}: {_why(form)}; "
            "use razor:form=reroute or razor:form=rcs"
        )
    if over == "sum":
        return np.where(statistics.unreached, np.nan, total)
    return divide(total, count) if over == "mean" else np.sqrt(divide(square, count))


def _why(form: str) -> str:
    if form == "loo":
        return "it has the whole gate weight of every token that reached it, so nothing is left to rescale"
    return "the router or the experts gave no finite numbers at any token that reached it"


ROW = Criterion(
    "razor",
    razor,
    formula=f"{WORDS['rms']}, {DELTA['reroute']}",
    needs=TEXT,
    cost=COST,
    source=arxiv("2609.30465"),
    settings=SETTINGS,
    forms=("reroute",),
)


def with_form(name: str, settings: str) -> Criterion:
    """Return razor with settings, written form=rcs,over=mean.

    Raises:
        ExciseError: there is no such setting, or it cannot have that value.
    """
    values = SETTINGS.measurement(ROW.name, settings).values
    form, over = values["form"], values["over"]
    return replace(
        ROW,
        name=name,
        score=partial(razor, form=form, over=over),
        formula=f"{WORDS[over]}, {DELTA[form]}",
        forms=(form,),
    )
