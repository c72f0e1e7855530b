"""Processors, memory and GPUs."""

from experts.errors import one_line
from experts.limits import free_memory
from prune.doctor.result import DevicesJson, FindingJson, GpuJson
from prune.machine import cores


def devices(problems: list[FindingJson]) -> DevicesJson:
    """What a run computes on. problems: gets a line where torch cannot be loaded."""
    return {"cores": cores(), "memory": free_memory(), "gpus": _gpus(problems)}


def _gpus(problems: list[FindingJson]) -> list[GpuJson]:
    try:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return [_gpu(number) for number in range(count)]
    except Exception as error:  # noqa: BLE001 - whatever a driver or a half installed library throws
        why = f"{type(error).__name__}: {one_line(error)}"
        way_out = "install torch anew, for this machine's driver (pytorch.org)"
        problems.append({"what": f"torch cannot be used ({why})", "way_out": way_out})
        return []


def _gpu(number: int) -> GpuJson:
    import torch

    free, total = torch.cuda.mem_get_info(number)
    return {"name": torch.cuda.get_device_name(number), "free": int(free), "total": int(total)}
