"""The result of an examination in lines: problems, notes, then facts."""

from experts.units import human
from prune.doctor.result import DoctorResult, FindingJson, FolderJson, GpuJson


def words(result: DoctorResult) -> list[str]:
    """Lines for the terminal."""
    lines = [_finding("problem", problem) for problem in result["problems"]]
    lines += [_finding("note", note) for note in result["notes"]]
    if not result["problems"]:
        lines.insert(0, "Ready: nothing here would stop a run.")
    facts = _facts(result)
    width = max(len(name) for name, _ in facts)
    return [*lines, "", *(f"{name:<{width}}  {value}" for name, value in facts)]


def _finding(kind: str, finding: FindingJson) -> str:
    way_out = f"; {finding['way_out']}" if finding["way_out"] else ""
    return f"{kind}: {finding['what']}{way_out}"


def _facts(result: DoctorResult) -> list[tuple[str, str]]:
    versions, devices = result["versions"], result["devices"]
    facts = [(name, version or "not installed") for name, version in versions.items()]
    facts.append(("cores", str(devices["cores"])))
    facts.append(("memory", f"{human(devices['memory'])} free for this process"))
    facts += [("GPU", _gpu(gpu)) for gpu in devices["gpus"]] or [("GPU", "none that torch can use")]
    facts.append(("cache", _folder(result["cache"], "results")))
    facts.append(("hub cache", _folder(result["hub"], "models")))
    facts.append(("here", _folder(result["here"], "")))
    facts.append(("locks", "supported" if result["locks"] else "not supported"))
    facts.append(("network", "off (HF_HUB_OFFLINE)" if result["offline"] else "allowed"))
    return facts


def _gpu(gpu: GpuJson) -> str:
    return f"{gpu['name']}, {human(gpu['free'])} of {human(gpu['total'])} free"


def _folder(folder: FolderJson, what: str) -> str:
    if folder["path"] is None:
        return "none"
    held = f"{folder['entries']} {what}, {human(folder['size'])}, " if what else ""
    writable = "writable" if folder["writable"] else "not writable"
    return f"{folder['path']}: {held}{writable}, {human(folder['free'])} free"
