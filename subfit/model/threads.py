"""How many threads a process uses: as many as the processor cores that it may use."""

import math
import os
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")


def limit_threads() -> None:
    """Lowers torch's threads to the cores that the process may use, unless OMP_NUM_THREADS says how many.

    torch counts the cores of the machine, of which a container may have few.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > (cores := usable_cores()):
        torch.set_num_threads(cores)


def usable_cores(root: Path = CGROUPS, of_process: Path = Path("/proc/self/cgroup")) -> int:
    """Returns the number of cores that this process may use: by its affinity, and by the quotas of its control groups.

    Args:
        root: where control groups (version 2) are mounted.
        of_process: the file that says which one the process is in.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quotas = [quota for group in _groups(root, of_process) if (quota := _quota(group / "cpu.max")) is not None]
    return max(1, math.ceil(min([cores, *quotas])))


def _groups(root: Path, of_process: Path) -> list[Path]:
    """The control group of the process and those that it is in; in a container, its own is the root."""
    try:
        lines = of_process.read_text().splitlines()
    except OSError:
        return [root]
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    return [root / path, *(root / path).parents][: len(Path(path).parts) + 1]


def _quota(file: Path) -> float | None:
    """The cores that a control group may use at once, as `cpu.max` says: microseconds in a period, or max."""
    try:
        limit, period = file.read_text().split()
        return int(limit) / int(period)
    except (OSError, ValueError):
        return None
