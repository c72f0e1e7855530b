"""recovery.md, and the tables of `excise finetune`: the control, the lead, and what every stretch of training gave back."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from prune.tables import markdown_table, percent, plain, probability, removed, signed, spread

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def tables(result: dict[str, Any]) -> Iterator[Table]:
    """(title, head, rows)."""
    names = [measure["name"] for measure in result["plans"][0]["measures"][1:]]
    head = (
        "plan",
        "ΔCE before",
        "ΔCE after",
        "gap closed [95 %]",
        *(f"{name} before → after" for name in names),
    )
    yield (
        "The same recovery for all",
        head,
        [*(_row(result, plan) for plan in result["plans"]), *_means(result)],
    )
    if result["leads"]:
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
        yield "Lead of the criterion over random plans", head, [_lead(one) for one in result["leads"]]
    head = (
        "training tokens",
        "ΔCE criterion",
        "gap closed",
        *(("ΔCE random (mean)", "gap closed ") if result["leads"] else ()),
    )
    yield "Recovery per cost", head, _healing(result)


def _row(result: dict[str, Any], plan: dict[str, Any]) -> tuple[str, ...]:
    loss, *tasks = plan["measures"]
    around = _range(loss["share_interval"], percent)
    share = "–" if loss["share"] is None else f"{percent(loss['share'])} {around}"
    scores = (_scores(result["full"][task["name"]], task["before"], task["after"]) for task in tasks)
    name = result["criterion"] if plan["name"] == "criterion" else plan["name"]
    return name, signed(loss["before"]), signed(loss["after"]), share, *scores


def _means(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Of the random plans, with their spread."""
    plans = [plan["measures"] for plan in result["plans"] if plan["name"].startswith("random-")]
    if not plans:
        return []
    cells = []
    for place, measure in enumerate(plans[0]):
        before, after = (np.array([plan[place][when] for plan in plans]) for when in ("before", "after"))
        if place == 0:
            around = (spread(values.mean(), values.std(ddof=1)) for values in (before, after))
            cells += [*around, _percent(_share(after, before) if _all_lost_something(result) else None)]
        else:
            cells.append(_scores(result["full"][measure["name"]], before.mean(), after.mean()))
    return [(f"mean of {len(plans)} random (± sd)", *cells)]


def _scores(full: float, before: float, after: float) -> str:
    """A task's score before and after recovery. before, after: what was lost of it."""
    return f"{plain(full - before, 3)} → {plain(full - after, 3)}"


def _all_lost_something(result: dict[str, Any]) -> bool:
    """Whether a share of what random plans lost is a number: each has lost something that is told from 0."""
    plans = [plan for plan in result["plans"] if plan["name"].startswith("random-")]
    return all(plan["measures"][0]["share"] is not None for plan in plans)


def _share(after: ArrayLike, before: ArrayLike) -> float:
    """What of the loss before came back."""
    return 1 - float(np.sum(after) / np.sum(before))


def _lead(one: dict[str, Any]) -> tuple[str, ...]:
    before, after = one["before"], one["after"]
    ends = {when: _range(one[f"interval_{when}"], signed) for when in ("before", "after")}
    leads = [f"{signed(one[f'lead_{when}'])} {around}" for when, around in ends.items()]
    kept = f"– ({one['kept_note']})"
    if one["kept"] is not None:
        kept = f"{percent(one['kept'])} {_range(one['kept_interval'], percent)}"
    return (
        one["name"],
        *leads,
        probability(before["p"]),
        probability(after["p"]),
        signed(after["smallest_detectable"]),
        kept,
        one["verdict"],
    )


def _healing(result: dict[str, Any]) -> list[tuple[str, ...]]:
    own, *others = [plan["curve"] for plan in result["plans"] if plan["name"] != "unpruned"]
    rows = []
    for place, point in enumerate(own):
        cells = [f"{int(point['tokens']):,}", signed(point["delta"]), _percent(point["share"])]
        if others:
            deltas, starts = ([curve[at]["delta"] for curve in others] for at in (place, 0))
            share = _share(deltas, starts) if _all_lost_something(result) else None
            cells += [signed(float(np.mean(deltas))), _percent(share)]
        rows.append(tuple(cells))
    return rows


def _range(ends: list[float | None], shown: Callable[[float], str]) -> str:
    low, high = ends
    return "[nan]" if low is None or high is None else f"[{shown(low)}, {shown(high)}]"


def _percent(value: float | None) -> str:
    return "–" if value is None else percent(value)


def training_in_words(training: dict[str, Any]) -> str:
    """One sentence."""
    teacher = training["teacher"]
    parts = [f"{training['ce']:g} · cross-entropy"] * bool(training["ce"])
    if teacher:
        where = (
            "the same weights in memory"
            if teacher["keep"] == "memory"
            else f"its best {teacher['top_k']} logits"
        )
        parts.append(
            f"{training['kl']:g} · KL to the teacher ({teacher['model']}, {where}, τ = {training['temperature']:g})"
        )
    return (
        f"LoRA of rank {training['rank']} on {', '.join(training['targets'])} ({training['weights']} weights, {training['tuned']:,} "
        f"trained parameters); loss = {' + '.join(parts)}; {training['steps']} steps, {training['tokens']:,} tokens of "
        f"{training['text']['windows']} windows (hash {training['text']['hash']}), learning rate {training['learning_rate']:g}, "
        f"seed {training['seed']}."
    )


def markdown(result: dict[str, Any]) -> str:
    """The whole report."""
    shown = "\n\n".join(f"## {title}\n{markdown_table(head, rows)}" for title, head, rows in tables(result))
    control = (
        ""
        if result["leads"]
        else "\n\nNo random plan was recovered (finetune.random_plans: 0), so nothing can be said of the lead."
    )
    gone = removed(result["fraction"])
    return f"""# {result["model"]["name"]}: recovery of {result["criterion"]}, {gone} of the experts removed

{training_in_words(result["training"])}
Random plans keep as many experts in every layer and got the same training: same text, same steps, same seed.

{shown}{control}

ΔCE: rise of the held-out cross-entropy over the unpruned model's {plain(result["loss"])}, nats per token;
of tasks: the score itself.
After: the merged weights, in the precision they are written in.
Gap closed: 1 − after / before; above 100 % the training gave more than pruning
took. Lead: mean random − criterion; kept: lead after / lead before. Intervals: percentile bootstrap over documents (of tasks: items), for
the random plans that were recovered; p: that one more random plan does as well, from a t distribution through the random plans: before
recovery through all of the validation's, after it through the recovered ones.

Rule: {result["rule"]}

The held-out text was only measured, never selected by. Raw rows: `losses.csv`, `recovered_losses.csv` (of tasks `items.csv`,
`recovered_items.csv`); curves: `healing.csv`; losses of every step: `recovery/<plan>/training.csv`.

Checkpoint: {result["checkpoint"]}. Adapter: {result["adapter"]}.
"""
