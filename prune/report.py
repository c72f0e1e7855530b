"""report.md: the table, the rule, the evidence and the formulas of one run."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # human() serves commands that start fast: pydantic stays out
    from prune.recipe import Recipe

HEAD = ("criterion", "scope", "kept", "size before → after", "ΔCE", "ΔCE random (mean ± sd)", "ΔCE reversed", "p", "verdict")


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per tested plan, as text; the first one is the plan that was written."""
    return [
        (
            plan["criterion"],
            plan["scope"],
            f"{plan['kept']}/{plan['of']}",
            sizes(result, plan),
            f"{plan['delta']:+.4f}",
            f"{plan['random']['mean']:+.4f} ± {plan['random']['sd']:.4f}",
            f"{plan['reversed_delta']:+.4f}",
            f"{plan['p']:.3f}",
            plan["verdict"],
        )
        for plan in result["plans"]
    ]


def sizes(result: dict[str, Any], plan: dict[str, Any]) -> str:
    """Bytes of all tensors before and after; experts of one layer weigh the same, so other plans of the same total are alike."""
    before, removed = result["size"]["before"], result["size"]["removed"]
    return f"{human(before)} → {human(before - removed)}" if plan["kept"] == result["plans"][0]["kept"] else ""


def human(size: int) -> str:
    """Bytes with a decimal unit."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} B"


def signed(value: float | None, digits: int = 4) -> str:
    """A number with its sign; a missing one as what it is."""
    return "nan" if value is None else f"{value:+.{digits}f}"


def table(result: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [HEAD, tuple("---" for _ in HEAD), *rows(result)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def evidence(result: dict[str, Any]) -> str:
    """What each verdict rests on, a paragraph per plan."""
    parts = []
    for plan in result["plans"]:
        low, high = map(signed, plan["interval"])
        note = f" ({plan['interval_note']})" if plan["interval_note"] else ""
        parts.append(
            f"- **{plan['criterion']}**, scope {plan['scope']}, score = {plan['formula']}: {plan['verdict']}. Advantage over the mean of "
            f"{len(plan['random']['values'])} random plans {plan['random']['mean'] - plan['delta']:+.4f} nats, 95 % interval "
            f"[{low}, {high}] over {plan['clusters']} documents{note}; effect {signed(plan['effect'], 2)} sd of the random plans; "
            f"p = {plan['p']:.4f} (as good by chance), {plan['p_worse']:.4f} (as bad by chance). Smallest difference this test finds with "
            f"80 % power: {signed(plan['smallest_detectable'])} nats. Kept per layer: {_counts(plan['kept_per_layer'])}."
        )
    return "\n".join(parts)


def _counts(counts: dict[str, int]) -> str:
    different = set(counts.values())
    return f"{different.pop()} in every layer" if len(different) == 1 else ", ".join(f"layer {layer}: {n}" for layer, n in counts.items())


def markdown(recipe: "Recipe", result: dict[str, Any]) -> str:
    """The whole report."""
    text = result["text"]
    checks = "\n".join(f"- passed: {check['name']} ({check['evidence']})" for check in result["checks"])
    reloaded = "\n- passed: 6 restricted = reloaded (logits bit-equal)" if result["checkpoint"] else ""
    return f"""# {recipe.model}: {recipe.criteria[0]} against chance

{table(result)}

ΔCE: rise of the held-out cross-entropy over the unpruned model's {result["loss"]:.4f}, in nats per token; smaller is better. Every plan is
measured by really removing the experts (restricted = cut = reloaded, bit-equal).

## Rule
{result["rule"]}

Random plans keep as many experts in every layer as the criterion's plan{_protection(result)}.
p = (1 + #random plans at least as good) / (R + 1). Interval: percentile bootstrap that resamples documents.

## Evidence
{evidence(result)}

Raw rows, one per plan and window: `losses.csv`.

{_agreement(result)}## Text
- calibration: {_describe(text["calibration"])}
- validation: {_describe(text["validation"])}
- validation documents that calibration has other windows of: {result["shared_documents"]}
- experts that no calibration token reached (no score, pruned first): {result["without_data"]}

## Checks of the instrument
{checks}{reloaded}

Model {result["model"]["name"]}, fingerprint {result["model"]["fingerprint"]}.
Checkpoint: {result["checkpoint"] or "none written: the recipe stops on this verdict"}.
"""


def _agreement(result: dict[str, Any]) -> str:
    """Spearman with the measured removals, if there were any."""
    if not result["agreement"]:
        return ""
    lines = [f"- {criterion}: {', '.join(signed(value, 2) for value in layers)}" for criterion, layers in result["agreement"].items()]
    return "## Rank agreement\nSpearman with the measured removals (causal_removal), layer by layer:\n" + "\n".join(lines) + "\n\n"


def _protection(result: dict[str, Any]) -> str:
    return f", and keep the {result['protected']} protected super experts as it does" if result["protected"] else ""


def _describe(text: dict[str, Any]) -> str:
    domains = ", ".join(text["domains"])
    return f"{text['windows']} windows of {text['length']} tokens from {text['documents']} documents ({domains}), hash {text['hash']}"
