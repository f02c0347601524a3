"""What the processor and the memory of this machine are, and what a matrix product costs on it."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import socket
import statistics
import time
from pathlib import Path


def cpuinfo() -> tuple[str, int]:
    """Model name and number of physical cores; the latter 0 where it is not told."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), 0
    name = re.search(r"model name\s*: (.+)", text)
    cores = set(re.findall(r"physical id\s*: (\d+)(?:.|\n)*?core id\s*: (\d+)", text))
    return name[1] if name else platform.machine(), len(cores)


def device_name(device: str) -> str:
    """What a device is called; of a processor, with how many of its cores torch uses."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{cpuinfo()[0]}, {torch.get_num_threads()} core(s)"


def device_key(device: str) -> str:
    """Which of all devices it is, as it may stand in a file's name: of a processor, its machine."""
    import torch

    which = str(torch.cuda.get_device_properties(device).uuid) if device.startswith("cuda") else "cpu"
    return f"{socket.gethostname()}-{which}"


def cpu_flags() -> set[str]:
    """What the processor says that it can."""
    try:
        flags = re.search(r"^(?:flags|Features)\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return set()
    return set(flags[1].split()) if flags else set()


def memory_bytes() -> tuple[int, int]:
    """Total and available, under the container's limit where there is one."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    with contextlib.suppress(OSError):  # no such files on this system: what sysconf says stands
        if available := re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text()):
            free = int(available[1]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit.isdecimal():
            total, free = min(total, int(limit)), min(free, int(limit))
    return total, free


def free_bytes(device: str) -> int:
    """Memory that is free on a device, for one of the processes that share this machine."""
    import torch

    from slurm.rank import placement

    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else memory_bytes()[1] // placement().local_world


def bf16_speed(size: int = 256, rounds: int = 5) -> float:
    """Time of a float32 matrix product over that of a bfloat16 one, on the CPU; medians, measured alternately.

    Small, because without instructions for it a bfloat16 product can be fifty times slower than a float32 one.
    """
    import torch

    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    matrices = {dtype: torch.ones(size, size, dtype=dtype) for dtype in seconds}
    for _ in range(rounds + 1):  # the first round warms up
        for dtype, matrix in matrices.items():
            began = time.perf_counter()
            matrix @ matrix
            seconds[dtype].append(time.perf_counter() - began)
    fp32, bf16 = (statistics.median(times[1:]) for times in seconds.values())
    return fp32 / bf16
