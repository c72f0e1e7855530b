"""recovery.md, and the tables of `excise finetune`: before and after, the lead, and the curves."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from prune.recover.result import RecoveredPlanJson, RecoveryResult
from prune.recover.training import training_in_words
from prune.tables import Table, markdown_table, percent, plain, probability, removed, signed, spread
from validate.results import LeadJson

NO_CONTROL = "No random plan was recovered, so nothing can be said of the lead."


def tables(result: RecoveryResult) -> Iterator[Table]:
    """Every plan before and after, the lead over random plans if there are some, and the curves."""
    yield _plans(result)
    if result["leads"]:
        yield _leads(result["leads"])
    yield _curves(result)


# Before and after.


def _plans(result: RecoveryResult) -> Table:
    tasks = [measure["name"] for measure in result["plans"][0]["measures"][1:]]
    head = ["plan", "ΔCE before", "ΔCE after", "gap closed [95 %]"]
    head += [f"{task} before → after" for task in tasks]
    rows = [_plan_row(result, plan) for plan in result["plans"]]
    if randoms := _randoms(result):
        rows.append(_mean_row(result, randoms))
    return Table("The same recovery for all", head, rows)


def _plan_row(result: RecoveryResult, plan: RecoveredPlanJson) -> list[str]:
    loss, *tasks = plan["measures"]
    share = "–"
    if loss["share"] is not None:
        share = f"{percent(loss['share'])} {_interval(loss['share_interval'], percent)}"
    name = result["criterion"] if plan["name"] == "criterion" else plan["name"]
    scores = [_scores(result["full"][task["name"]], task["before"], task["after"]) for task in tasks]
    return [name, signed(loss["before"]), signed(loss["after"]), share, *scores]


def _randoms(result: RecoveryResult) -> list[RecoveredPlanJson]:
    return [plan for plan in result["plans"] if plan["name"].startswith("random-")]


def _mean_row(result: RecoveryResult, randoms: Sequence[RecoveredPlanJson]) -> list[str]:
    """Of the random plans, with their spread."""
    row = [f"mean of {len(randoms)} random (± sd)"]
    for place, measure in enumerate(randoms[0]["measures"]):
        before = np.array([plan["measures"][place]["before"] for plan in randoms])
        after = np.array([plan["measures"][place]["after"] for plan in randoms])
        if place == 0:
            row += [spread(values.mean(), values.std(ddof=1)) for values in (before, after)]
            row.append(_percent(_gap_closed(after, before) if _all_lost_something(randoms) else None))
        else:
            row.append(_scores(result["full"][measure["name"]], before.mean(), after.mean()))
    return row


def _scores(full: float, before: float, after: float) -> str:
    """A task's score before and after recovery. before, after: what was lost of it."""
    return f"{plain(full - before, 3)} → {plain(full - after, 3)}"


def _all_lost_something(randoms: Sequence[RecoveredPlanJson]) -> bool:
    """Whether each random plan lost significantly: only then is a share of their loss a number."""
    return all(plan["measures"][0]["share"] is not None for plan in randoms)


def _gap_closed(after: ArrayLike, before: ArrayLike) -> float:
    """Share of the loss before that came back."""
    return 1 - float(np.sum(after) / np.sum(before))


# The lead.


def _leads(leads: Sequence[LeadJson]) -> Table:
    head = (
        "by",
        "lead before [95 %]",
        "lead after [95 %]",
        "p before",
        "p after",
        "smallest found",
        "kept [95 %]",
        "verdict",
    )
    return Table("Lead of the criterion over random plans", head, [_lead_row(lead) for lead in leads])


def _lead_row(lead: LeadJson) -> list[str]:
    kept = f"– ({lead['kept_note']})"
    if lead["kept"] is not None:
        kept = f"{percent(lead['kept'])} {_interval(lead['kept_interval'], percent)}"
    return [
        lead["name"],
        f"{signed(lead['lead_before'])} {_interval(lead['interval_before'], signed)}",
        f"{signed(lead['lead_after'])} {_interval(lead['interval_after'], signed)}",
        probability(lead["before"]["p"]),
        probability(lead["after"]["p"]),
        signed(lead["after"]["smallest_detectable"]),
        kept,
        lead["verdict"],
    ]


# Against training tokens.


def _curves(result: RecoveryResult) -> Table:
    """The criterion's curve, and the mean of the others where random plans were recovered."""
    head = ["training tokens", "ΔCE criterion", "gap closed"]
    if result["leads"]:
        head += ["ΔCE random (mean)", "gap closed "]
    own, *others = [plan["curve"] for plan in result["plans"] if plan["name"] != "unpruned"]
    comparable = _all_lost_something(_randoms(result))
    rows = []
    for place, point in enumerate(own):
        row = [f"{int(point['tokens']):,}", signed(point["delta"]), _percent(point["share"])]
        if others:
            starts = [curve[0]["delta"] for curve in others]
            deltas = [curve[place]["delta"] for curve in others]
            row.append(signed(float(np.mean(deltas))))
            row.append(_percent(_gap_closed(deltas, starts) if comparable else None))
        rows.append(row)
    return Table("Recovery per cost", head, rows)


def _interval(ends: Sequence[float | None], shown: Callable[[float], str]) -> str:
    low, high = ends
    return "[nan]" if low is None or high is None else f"[{shown(low)}, {shown(high)}]"


def _percent(value: float | None) -> str:
    return "–" if value is None else percent(value)


# The report.


def markdown(result: RecoveryResult) -> str:
    """The whole of recovery.md."""
    name, criterion, share = result["model"]["name"], result["criterion"], removed(result["fraction"])
    parts = [
        f"# {name}: recovery of {criterion}, {share} of the experts removed\n",
        f"{training_in_words(result['training'])}\n{SAME_TRAINING}\n",
    ]
    parts += [f"## {table.title}\n{markdown_table(table)}\n" for table in tables(result)]
    if not result["leads"]:
        parts.append(
            "No random plan was recovered (finetune.random_plans: 0), so nothing can be said of the lead.\n"
        )
    parts += [
        _definitions(result["loss"]),
        f"Rule: {result['rule']}\n",
        FILES,
        f"Checkpoint: {result['checkpoint']}. Adapter: {result['adapter']}.\n",
    ]
    return "\n".join(parts)


def _definitions(loss: float) -> str:
    return f"""\
ΔCE: rise of the held-out cross-entropy over the unpruned model's {plain(loss)}, nats per token;
of tasks: the score itself.
After: the merged weights, in the precision they are written in.
Gap closed: 1 − after / before; above 100 % training gained more than pruning took.
Lead: mean random − criterion; kept: lead after / lead before.
Intervals: percentile bootstrap over documents (of tasks: items), for the random plans that were recovered.
p: probability that one more random plan does as well, from a t distribution through the random plans:
before recovery through all of the validation's, after it through the recovered ones.
"""


SAME_TRAINING = (
    "Random plans keep as many experts in every layer and got the same training: "
    "same text, same steps, same seed."
)
FILES = """\
The held-out text was only measured, never selected by.
Raw rows: `losses.csv`, `recovered_losses.csv` (of tasks `items.csv`, `recovered_items.csv`);
curves: `healing.csv`; losses of every step: `recovery/<plan>/training.csv`.
"""
