"""The facts of `excise inspect` in words: (name, value), in the order in which they are printed."""

from experts.units import human
from prune.inspect import InspectResult, SavingJson
from prune.tables import percent

Facts = list[tuple[str, str]]


def facts(summary: InspectResult) -> Facts:
    """What a checkpoint is made of, and what pruning would save."""
    lines: Facts = [("family", summary["family"]), ("MoE layers", _layers(summary))]
    lines += _unequal_counts(summary) if "kept_per_layer" in summary else _equal_counts(summary)
    lines.append(("parameters", _parameters(summary)))
    lines.append(("size on disk", f"{human(summary['size'])} ({', '.join(summary['dtypes'])})"))
    if dropped := summary.get("multi_token_prediction_tensors"):
        lines.append(("multi-token head", f"{dropped} tensors, dropped by an export"))
    savings = summary.get("savings", [])
    lines += [(f"pruned by {percent(saving['fraction'])}", _saving(saving)) for saving in savings]
    if summary["history"]:
        lines.append(("history", summary["history"]))
    return lines


def _layers(summary: InspectResult) -> str:
    layers = summary["layers"]
    return f"{summary['moe_layers']} (decoder layers {layers[0]}..{layers[-1]})"


def _equal_counts(summary: InspectResult) -> Facts:
    groups = "none"
    if summary["groups"] > 1:
        groups = f"{summary['groups']}, a token uses {summary['groups_per_token']}"
    return [
        ("experts per layer", f"{summary['experts']}, top-{summary['top_k']}"),
        ("router groups", groups),
        ("shared experts", str(summary["shared_experts"])),
    ]


def _unequal_counts(summary: InspectResult) -> Facts:
    counts = ", ".join(f"{layer}: {count}" for layer, count in summary["kept_per_layer"].items())
    how = "pruned by Excise; load with trust_remote_code=True"
    return [("experts per layer", f"{counts} ({how}), top-{summary['top_k']}")]


def _parameters(summary: InspectResult) -> str:
    inside, elsewhere = summary["parameters"]["experts"], summary["parameters"]["elsewhere"]
    share = inside / (inside + elsewhere)
    return f"{inside:,} in experts, {elsewhere:,} elsewhere ({share:.1%} in experts)"


def _saving(saving: SavingJson) -> str:
    if "impossible" in saving:
        return saving["impossible"]
    return f"{human(saving['size'])}, {human(saving['saved'])} less ({saving['keep']} experts per layer)"
