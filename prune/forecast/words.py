"""A forecast in words: (name, value), in the order in which they are printed."""

from collections import Counter

from experts.units import human
from prune.forecast.result import ForecastJson, MemoryJson, StageJson

Facts = list[tuple[str, str]]


def words(forecast: ForecastJson) -> Facts:
    """Read, computed, written; then memory, disk and time."""
    model, memory, disk = forecast["model"], forecast["memory"], forecast["disk"]
    download = f", {human(model['download'])} to download" if model["download"] else ", here already"
    lines: Facts = [("model", f"{model['name']}, {human(model['size'])}{download}")]
    for text in forecast["texts"]:
        sources = "; ".join(text["sources"])
        lines.append((text["part"], f"{text['windows']} windows of {text['length']} tokens: {sources}"))
    lines += [(stage["stage"], _stage(stage)) for stage in forecast["stages"]]
    lines.append(("all stages", _total(forecast["stages"])))
    lines.append(("writes", f"{disk['run']}: {', '.join(forecast['writes'])}"))
    if disk["checkpoint"] is not None:
        beside = f", and {human(disk['refit'])} of refitted weights beside them until they are proven"
        lines.append(
            ("checkpoint", f"{human(disk['checkpoint'])} of tensors{beside if disk['refit'] else ''}")
        )
    lines.append(("disk", f"{human(disk['free'])} free there"))
    weights = f"{human(memory['weights'])} of weights"
    if memory["model"] == "streamed":
        weights += f", {human(memory['streamed'])} at a time, {human(memory['states'])} for hidden states"
        weights += f" (of them up to {human(memory['spilled'])} in {memory['spill']})"
        lines.append(("reads", f"{human(memory['reads'])}, layer by layer: {_readings(memory)}"))
    needed = f"{weights}, {human(memory['batch'])} for the logits of a batch"
    limit = "" if memory["limit"] is None else f", memory.limit {human(memory['limit'])}"
    free = f"{human(memory['free'])} free, a GPU's apart{limit}"
    lines.append(("memory", f"{needed}, and activations; {free}"))
    lines.append(("time", f"{_time(forecast)}; an interrupted run resumes"))
    return lines


def _readings(memory: MemoryJson) -> str:
    """Fingerprint, calibration, checks, plans × 2, …"""
    readings = Counter(memory["readings"]).items()
    times = [f"{name} × {count}" if count > 1 else name for name, count in readings]
    return ", ".join(["fingerprint", *times])


def _time(forecast: ForecastJson) -> str:
    seconds, source = forecast["seconds"], forecast["seconds_from"]
    loading = f"about {_duration(forecast['memory']['loading'])} of loading, on one thread"
    if seconds is None:
        return f"{loading}; the forwards are not known: {source}"
    return f"{loading}, and about {_duration(seconds)} of forwards: {source}"


def _duration(seconds: float) -> str:
    """Two digits in the unit that people would choose."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.0f} h"


def _stage(stage: StageJson) -> str:
    if stage["windows"] is None:
        return stage["detail"]
    return f"{stage['windows']:,} window forwards: {stage['detail']}"


def _total(stages: list[StageJson]) -> str:
    known = sum(stage["windows"] or 0 for stage in stages)
    rest = [stage["stage"] for stage in stages if stage["windows"] is None]
    beside = f", and {', '.join(rest)}" if rest else ""
    return f"about {known:,} window forwards{beside}; what is kept from earlier runs is not done again"
