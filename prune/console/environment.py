"""The environment as libraries will read it: what would hang, mislead or stop them is mended first."""

import atexit
import os
import re
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from experts.errors import ExciseError
from experts.notes import tell
from experts.ranks import TORCHRUN, joined

# Set by torchrun, accelerate, mpirun and Slurm (srun) in every process that they start.
SIZES = {
    "WORLD_SIZE": ("RANK", "LOCAL_RANK"),
    "PMI_SIZE": ("PMI_RANK",),
    "OMPI_COMM_WORLD_SIZE": ("OMPI_COMM_WORLD_RANK",),
    "MV2_COMM_WORLD_SIZE": ("MV2_COMM_WORLD_RANK",),
    "SLURM_STEP_NUM_TASKS": ("SLURM_PROCID",),
}
LAUNCHER = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(WORLD_SIZE|RANK)|NODE_RANK|ROLE_NAME|MASTER_(ADDR|PORT)|FORK_LAUNCHED|"
    r"MPI_LOCAL\w+|SMDATAPARALLEL_LOCAL_RANK|(TORCHELASTIC|PMI|OMPI_COMM_WORLD|MV2_COMM_WORLD)_\w+"
)
# Settings of `accelerate launch`.
TRAINING = re.compile(r"(ACCELERATE|FSDP|MEGATRON_LM|PARALLELISM_CONFIG)_\w+")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # torch's
WITHOUT_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS")
# Written also where nothing is downloaded.
CACHES = {"HF_MODULES_CACHE": "modules", "HF_DATASETS_CACHE": "datasets"}


def mend() -> None:
    """Remove from the environment what would mislead the libraries; notes say what is not used.

    Raises:
        ExciseError: several processes were started together.
    """
    _work_alone()
    _train_by_the_recipe()
    _count_threads()
    _place_caches()


def open_streams() -> None:
    """A command started with closed streams (`>&-`) would write messages into the next file that it opens."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


def use_width() -> None:
    """A width of 0 hides every table and help text."""
    if "COLUMNS" in os.environ and not _is_count(os.environ["COLUMNS"]):
        del os.environ["COLUMNS"]


def hide_bars() -> None:
    """No progress bars with -q, and none of torchrun's other processes: tqdm asks when it is imported."""
    quiet = {"-q", "--quiet"} & set(sys.argv[1:])
    others = TORCHRUN in os.environ and os.environ.get("RANK", "0") != "0"
    if quiet or others:
        os.environ.update(dict.fromkeys(WITHOUT_BARS, "1"))


def use_large_pages() -> None:
    """Large tensors lie in large pages where the system has them: FP8 then loads in a third less CPU time.

    torch asks once, at its first tensor.
    """
    os.environ.setdefault(LARGE_PAGES, "1")


def _work_alone() -> None:
    """Libraries would wait for processes that do not exist; those that do would all write one folder."""
    ranks_joined = joined()
    if ranks_joined is not None:
        tell(f"{ranks_joined.size} processes work together")
        _drop(LAUNCHER)  # training libraries would wait for the others
        return
    for name, ranks in SIZES.items():
        size = os.environ.get(name, "").strip()
        numbers = [rank for rank in ranks if rank in os.environ]
        if size in ("", "0", "1"):
            continue
        if numbers:
            raise ExciseError(
                f"{name}={size} says that several processes were started together, and not by torchrun: "
                "they would all write one folder. Use torchrun --nproc-per-node N --no-python excise …;"
                f" if the variables are left over: unset {' '.join((name, *numbers))}"
            )
        tell(f"{name}={size} in the environment is not used: Excise works as one process")
    if {"ACCELERATE_USE_CPU", "MASTER_PORT"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        raise ExciseError(
            "accelerate launch was asked for several processes and has started one (MASTER_PORT without "
            "WORLD_SIZE). Use torchrun --nproc-per-node N --no-python excise …, or --num_processes 1"
        )
    _drop(LAUNCHER)


def _train_by_the_recipe() -> None:
    """Else a recovery would depend on what another training left behind, precision and batches included."""
    if dropped := _drop(TRAINING):
        tell(f"{', '.join(dropped)} in the environment: not used, the recipe says how to train")


def _drop(names: re.Pattern[str]) -> list[str]:
    dropped = sorted(name for name in os.environ if names.fullmatch(name))
    for name in dropped:
        del os.environ[name]
    return dropped


def _count_threads() -> None:
    for name in THREADS:
        if name in os.environ and not all(map(_is_count, os.environ[name].split(","))):
            count = os.environ.pop(name)
            tell(f"{name}={count} in the environment is no number of threads, so it is not used")


def _is_count(text: str) -> bool:
    return re.fullmatch(r"0*[1-9]\d{0,8}", text.strip(), re.ASCII) is not None


def _place_caches() -> None:
    """transformers and datasets copy what they load: to a temporary folder where theirs cannot be written."""
    home = os.environ.get("HF_HOME") or _default_home()
    with suppress(OSError):  # no room for temporary files either: most commands need none
        if str(_expanded(home)).startswith("~"):  # without a home they would make a folder of that name here
            home = os.environ["HF_HOME"] = _temporary()
        for name, folder in CACHES.items():
            if not can_be_made(_expanded(os.environ.get(name) or str(Path(home, folder)))):
                os.environ[name] = str(Path(_temporary(), folder))


def _default_home() -> str:
    return str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"))


def _expanded(path: str) -> Path:
    """With the user's home for ~; as it is where there is none."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - that of Path raises


def can_be_made(folder: Path) -> bool:
    """Whether a folder exists or can be made, and can be written to."""
    parents = (parent for parent in (folder, *folder.parents) if os.access(parent, os.F_OK))
    nearest = next(parents, folder)
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _temporary() -> str:
    folder = tempfile.mkdtemp(prefix="excise-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
