"""recovery.md, and the tables of `excise finetune`: the control, the lead, and what every stretch of training gave back."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from prune.format import markdown_table, probability, signed

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def tables(result: dict[str, Any]) -> Iterator[Table]:
    """(title, head, rows)."""
    names = [measure["name"] for measure in result["plans"][0]["measures"][1:]]
    head = ("plan", "ΔCE before", "ΔCE after", "gap closed [95 %]", *(f"{name} before → after" for name in names))
    yield "The same recovery for all", head, [*(_row(result, plan) for plan in result["plans"]), *_means(result)]
    if result["leads"]:
        head = ("by", "lead before [95 %]", "lead after [95 %]", "p before", "p after", "smallest found", "kept [95 %]", "verdict")
        yield "Lead of the criterion over random plans", head, [_lead(one) for one in result["leads"]]
    head = ("training tokens", "ΔCE criterion", "gap closed", *(("ΔCE random (mean)", "gap closed ") if result["leads"] else ()))
    yield "Healing per cost", head, _healing(result)


def _row(result: dict[str, Any], plan: dict[str, Any]) -> tuple[str, ...]:
    loss, *tasks = plan["measures"]
    share = "–" if loss["share"] is None else f"{loss['share']:.0%} {_range(loss['share_interval'], '.0%')}"
    scores = (f"{result['full'][task['name']] - task['before']:.3f} → {result['full'][task['name']] - task['after']:.3f}" for task in tasks)
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
            spread = [f"{values.mean():+.4f} ± {values.std(ddof=1):.4f}" for values in (before, after)]
            cells += [*spread, f"{1 - after.sum() / before.sum():.0%}"]
        else:
            full = result["full"][measure["name"]]
            cells.append(f"{full - before.mean():.3f} → {full - after.mean():.3f}")
    return [(f"mean of {len(plans)} random (± sd)", *cells)]


def _lead(one: dict[str, Any]) -> tuple[str, ...]:
    before, after = one["before"], one["after"]
    leads = (f"{signed(one[f'lead_{when}'])} {_range(one[f'interval_{when}'], '+.4f')}" for when in ("before", "after"))
    kept = f"– ({one['kept_note']})" if one["kept"] is None else f"{one['kept']:.0%} {_range(one['kept_interval'], '.0%')}"
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
            cells += [signed(float(np.mean(deltas))), _percent(1 - sum(deltas) / sum(starts))]
        rows.append(tuple(cells))
    return rows


def _range(ends: list[float | None], form: str) -> str:
    low, high = ends
    return "[nan]" if low is None or high is None else f"[{low:{form}}, {high:{form}}]"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def training_in_words(training: dict[str, Any]) -> str:
    """One sentence."""
    teacher = training["teacher"]
    parts = [f"{training['ce']:g} · cross-entropy"] * bool(training["ce"])
    if teacher:
        where = "the same weights in memory" if teacher["keep"] == "memory" else f"its best {teacher['top_k']} logits"
        parts.append(f"{training['kl']:g} · KL to the teacher ({teacher['model']}, {where}, τ = {training['temperature']:g})")
    return (
        f"LoRA of rank {training['rank']} on {', '.join(training['targets'])} ({training['weights']} weights, {training['tuned']:,} "
        f"trained parameters); loss = {' + '.join(parts)}; {training['steps']} steps, {training['tokens']:,} tokens of "
        f"{training['text']['windows']} windows (hash {training['text']['hash']}), learning rate {training['learning_rate']:g}, "
        f"seed {training['seed']}."
    )


def markdown(result: dict[str, Any]) -> str:
    """The whole report."""
    shown = "\n\n".join(f"## {title}\n{markdown_table(head, rows)}" for title, head, rows in tables(result))
    control = "" if result["leads"] else "\n\nNo random plan was recovered (finetune.random_plans: 0), so nothing can be said of the lead."
    return f"""# {result["model"]["name"]}: recovery of {result["criterion"]}, {result["fraction"]:.0%} of the experts removed

{training_in_words(result["training"])}
Random plans keep as many experts in every layer and got the same training: same text, same steps, same seed.

{shown}{control}

ΔCE: rise of the held-out cross-entropy over the unpruned model's {result["loss"]:.4f}, nats per token; of tasks: the score itself. After:
the merged weights, in the precision they are written in. Gap closed: 1 − after / before; above 100 % the training gave more than pruning
took. Lead: mean random − criterion; kept: lead after / lead before. Intervals: percentile bootstrap over documents (of tasks: items), for
the random plans that were recovered; p: that one more random plan does as well, from a t distribution through the random plans: before
recovery through all of the validation's, after it through the recovered ones.

Rule: {result["rule"]}

The held-out text was only measured, never selected by. Raw rows: `losses.csv`, `recovered_losses.csv` (of tasks `items.csv`,
`recovered_items.csv`); curves: `healing.csv`; losses of every step: `recovery/<plan>/training.csv`.

Checkpoint: {result["checkpoint"]}. Adapter: {result["adapter"]}.
"""
