"""The processes that torchrun started: rank 0 runs Excise, the others compute what it hands out.

Only objects are exchanged, over gloo; where a GPU is, the group also has NCCL.
"""

import os
import platform
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psutil

from experts.errors import ExciseError
from experts.limits import free_memory, share_machine

TORCHRUN = "TORCHELASTIC_RUN_ID"  # set by torchrun alone, which also ends all ranks when one is killed
JOINING = timedelta(minutes=5)  # in which all of them have to be there
PARTING = 2.0  # seconds, for a rank whose connection is lost to have ended
LONGEST = timedelta(days=30)  # that a rank may work alone before the others give it up


@dataclass
class Ranks:
    """The group of processes.

    Attributes:
        rank: of this process
        size: how many processes there are
        free: bytes of main memory for this one, before any of them loaded a model
        processes: of the ranks on this machine, by rank
        busy: whether this process is inside an exchange, which the others have not left
    """

    rank: int
    size: int
    free: int = 0
    processes: dict[int, int] = field(default_factory=dict)
    busy: bool = False

    def hand_out(self, tasks: list[Any] | None) -> Any:
        """Give every rank its task; called by all ranks.

        Args:
            tasks: one per rank, on rank 0; None elsewhere

        Returns:
            This rank's task.
        """
        import torch.distributed as dist

        own: list[Any] = [None]
        self.busy = True
        dist.scatter_object_list(own, tasks, src=0)
        return own[0]

    def collect(self, result: Any) -> list[Any]:
        """Give rank 0 the results of all ranks; called by all ranks. Elsewhere the list is empty."""
        import torch.distributed as dist

        gathered: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(result, gathered, dst=0)
        self.busy = False
        return gathered or []

    def leave(self) -> None:
        """End the group."""
        import torch.distributed as dist

        dist.destroy_process_group()


_joined: list[Ranks] = []


def joined() -> Ranks | None:
    """The group that this process belongs to; None where it works alone."""
    return _joined[0] if _joined else None


def join() -> Ranks | None:
    """Join the processes that torchrun started with this one, if it started several.

    Raises:
        ExciseError: the variables of torchrun are not complete, or the others cannot be reached.
    """
    size = os.environ.get("WORLD_SIZE", "").strip()
    if size in ("", "0", "1") or TORCHRUN not in os.environ:
        return None
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, rank, count = next(rendezvous("env://", timeout=JOINING))
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=LONGEST)
    except (ValueError, RuntimeError) as error:
        raise ExciseError(
            f"WORLD_SIZE={size}, but the processes cannot reach each other ({str(error).splitlines()[0]}); "
            "start them with torchrun --nproc-per-node N --no-python excise …, "
            "or unset WORLD_SIZE and RANK to work as one"
        ) from error
    share_machine(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    _joined.append(Ranks(rank, count, free_memory(), _processes_here(rank, count)))
    return _joined[0]


def _processes_here(rank: int, count: int) -> dict[int, int]:
    """Processes of the ranks on this machine, by rank."""
    import torch.distributed as dist

    known: list[Any] = [None] * count
    dist.all_gather_object(known, (platform.node(), rank, os.getpid()))
    return {other: process for machine, other, process in known if machine == platform.node()}


def ended_ranks(patient: bool) -> str:
    """The first rank of this machine that is not there any more, in words; empty where all are.

    Args:
        patient: wait inside an exchange for a rank that is on its way out: a process that is killed closes
            its connections a moment before it counts as ended
    """
    ranks = joined()
    if ranks is None:
        return ""
    until = time.monotonic() + (PARTING if patient and ranks.busy else 0.0)
    while True:
        for rank, process in ranks.processes.items():
            if _has_ended(process):
                return f"rank {rank} of {ranks.size}"
        if time.monotonic() >= until:
            return ""
        time.sleep(0.05)


def _has_ended(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True
