"""What this machine can do, and the command that adds what is missing."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

State = Literal["ok", "warn", "missing", "broken"]
GIB = 2**30
RUN_FOLDER_GIB, SHM_GIB = 5, 0.5  # the demo writes less than one; gloo and NCCL exchange through shared memory


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: heading it stands under.
        name: what was looked at.
        state: 'ok'; 'warn' works, but not well; 'missing' and not needed by everybody; 'broken' and needed.
        found: what was found.
        mend: the command that adds or mends it.
    """

    topic: str
    name: str
    state: State
    found: str
    mend: str = ""


def examine(run_folder: Path) -> list[Finding]:
    """Everything, in the order in which it is shown. Takes about two seconds, most of them torch's import."""
    return [*machine(), *torch_build(), *libraries(), *faiss_kind(), *tools(), *slurm_parts(), *space(run_folder)]


def machine() -> Iterator[Finding]:
    """Python, processor and memory."""
    version = platform.python_version()
    old = sys.version_info < (3, 10)
    yield Finding(
        topic="machine", name="Python", state="broken" if old else "ok", found=version, mend="install Python 3.10 or later" if old else ""
    )
    cpu, cores = cpuinfo()
    usable, threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, os.cpu_count() or 1
    yield Finding(
        topic="machine", name="processor", state="ok", found=f"{cpu}: {cores or threads} cores, {threads} threads, {usable} usable here"
    )
    total, free = memory_bytes()
    low = total < 4 * GIB
    mend = "smaller --batch, images or models: the demo needs about 4 GiB" if low else ""
    yield Finding(
        topic="machine", name="memory", state="warn" if low else "ok", found=f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB free", mend=mend
    )


def cpuinfo() -> tuple[str, int]:
    """Model name and number of physical cores; the latter 0 where it is not told."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), 0
    name = re.search(r"model name\s*: (.+)", text)
    cores = set(re.findall(r"physical id\s*: (\d+)(?:.|\n)*?core id\s*: (\d+)", text))
    return name[1] if name else platform.machine(), len(cores)


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


def torch_build() -> Iterator[Finding]:
    """torch, its pin, GPUs and bfloat16."""
    if importlib.util.find_spec("torch") is None:
        yield Finding(topic="torch", name="torch", state="broken", found="not installed", mend=pip("cpu"))
        return
    import torch

    cuda = torch.version.cuda
    kind = f"CUDA {cuda}" if cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "CPU"
    pin = pinned("torch")
    fits = pin is None or torch.__version__.split("+")[0] == pin
    yield Finding(
        topic="torch",
        name="torch",
        state="ok" if fits else "warn",
        found=f"{torch.__version__} ({kind} build)" + ("" if fits else f", but constraints.txt pins {pin}"),
        mend="" if fits else pip("cpu"),
    )
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(i)
            yield Finding(
                topic="torch",
                name=f"GPU {i}",
                state="ok",
                found=f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, compute {gpu.major}.{gpu.minor}",
            )
        good = torch.cuda.is_bf16_supported()
        yield Finding(
            topic="torch",
            name="bf16",
            state="ok" if good else "warn",
            found="by the GPU" if good else "not by this GPU",
            mend="" if good else "engine.precision=fp32",
        )
        return
    seen = shutil.which("nvidia-smi") is not None
    yield Finding(
        topic="torch",
        name="GPU",
        state="warn" if seen else "missing",
        found="the driver is here (nvidia-smi), but torch does not reach it" if seen else "none; everything runs on the CPU, slower",
        mend="install a CUDA build of torch (pytorch.org), then check nvidia-smi" if seen else "",
    )
    units = [flag for flag in ("amx_bf16", "avx512_bf16", "bf16") if flag in cpu_flags()]
    speed = bf16_speed()
    yield Finding(
        topic="torch",
        name="bf16",
        state="ok" if speed > 1.1 else "warn",
        found=f"{', '.join(units) or 'no instructions of the CPU for it'}; a matrix product runs {speed:.2g} x as fast as in fp32",
        mend="" if speed > 1.1 else "engine.precision=fp32 is the faster one here",
    )


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


def libraries() -> Iterator[Finding]:
    """Every library that the package names as its own requirement, then the optional ones."""
    needed, bad = [], []
    for text in importlib.metadata.requires("retinaforge") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed(requirement.name)
        needed.append(f"{requirement.name} {version}")
        if version is None:
            bad.append(f"{requirement.name} is not installed")
        elif not requirement.specifier.contains(version, prereleases=True):
            bad.append(f"{requirement.name} {version}, needed {requirement.specifier}")
    mend = pip("cpu") if bad else ""
    yield Finding(
        topic="libraries", name="needed", state="broken" if bad else "ok", found="; ".join(bad) or ", ".join(sorted(needed)), mend=mend
    )
    yield from optional("codecs", "codecs", ("blosc2", "pcodec"))
    yield from optional("codebooks", "codebooks", ("vector-quantize-pytorch",))  # of kind fsq, and gradient rotation
    yield from optional("DeepSpeed", "deepspeed", ("deepspeed", "transformers"))  # accelerate's plugin needs transformers, undeclared


def optional(name: str, extra: str, parts: tuple[str, ...]) -> Iterator[Finding]:
    """A group of libraries that stands or falls together."""
    versions = {part: installed(part) for part in parts}
    absent = [part for part, version in versions.items() if version is None]
    found = ", ".join(f"{part} {version or 'not installed'}" for part, version in versions.items())
    yield Finding(topic="libraries", name=name, state="missing" if absent else "ok", found=found, mend=pip(extra) if absent else "")


def faiss_kind(versions: dict[str, str | None] | None = None) -> Iterator[Finding]:
    """faiss-cpu and faiss-gpu write the same folder: with both installed the later one silently removes parts of the other."""
    if versions is None:
        versions = {name: installed(name) for name in ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cu11")}
    here = {name: version for name, version in versions.items() if version}
    found = ", ".join(f"{name} {version}" for name, version in here.items()) or "not installed"
    if len(here) > 1:
        mend = f"{python()} -m pip uninstall -y {' '.join(here)} && {pip('cpu')}"
        yield Finding(
            topic="libraries", name="faiss", state="broken", found=f"{found}: both own the folder faiss/, one is damaged", mend=mend
        )
    else:
        mend = "" if here else f"{pip('cpu')}, or [gpu]; never both"
        yield Finding(
            topic="libraries",
            name="faiss",
            state="ok" if here else "missing",
            found=found + ("" if here else ": no audit, no nearest neighbours"),
            mend=mend,
        )


def tools() -> Iterator[Finding]:
    """Compiler, ninja and MPI."""
    compiler, ninja = shutil.which("g++"), beside_python("ninja")
    versions = first_line(compiler, "-dumpfullversion") or "not found", first_line(ninja, "--version") or "not found"
    yield Finding(
        topic="tools",
        name="compiler",
        state="ok" if compiler and ninja else "missing",
        found="g++ {}, ninja {} (DeepSpeed builds with both)".format(*versions),
        mend=" && ".join(["apt-get install g++"] * (not compiler) + [f"{python()} -m pip install ninja"] * (not ninja)),
    )
    mpi4py, mpiexec = installed("mpi4py"), beside_python("mpiexec")
    yield Finding(
        topic="tools",
        name="MPI",
        state="ok" if mpi4py and mpiexec else "missing",
        found=f"mpi4py {mpi4py or 'not installed'}, {mpiexec or 'no mpiexec'}",
        mend="" if mpi4py and mpiexec else pip("mpi"),
    )


def slurm_parts() -> Iterator[Finding]:
    """The cluster this machine belongs to, and the daemons that the tests start for themselves."""
    client = shutil.which("sbatch")
    answers = bool(client) and run([shutil.which("scontrol") or "scontrol", "ping"])[0] == 0
    found = (
        "sbatch is here, and its controller answers" if answers else "sbatch is here, but no controller answers" if client else "no sbatch"
    )
    yield Finding(
        topic="SLURM",
        name="cluster",
        state="ok" if answers else "missing",
        found=found,
        mend="" if answers else "log in to a cluster; meanwhile: retinaforge submit --local | --dry-run",
    )
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    absent = [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name, path=path) is None]
    yield Finding(
        topic="SLURM",
        name="for the tests",
        state="missing" if absent else "ok",
        found=f"no {', '.join(absent)}" if absent else "slurmctld, slurmd, munged",
        mend="apt-get install --no-install-recommends slurm-wlm munge" if absent else "",
    )


def space(run_folder: Path) -> Iterator[Finding]:
    """Free room where runs go, and shared memory."""
    there = run_folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free / GIB
    writable = os.access(there, os.W_OK | os.X_OK)
    state: State = "broken" if not writable else "warn" if free < RUN_FOLDER_GIB else "ok"
    found = f"{run_folder}: {free:.0f} GiB free" if writable else f"{there} may not be written to"
    mend = {"broken": f"ls -ld {there}; choose another folder", "warn": f"df -h {there}; free some space"}.get(state, "")
    yield Finding(topic="space", name="runs", state=state, found=found, mend=mend)
    shm = Path("/dev/shm")
    if shm.is_dir():
        free = shutil.disk_usage(shm).free / GIB
        low = free < SHM_GIB
        mend = "docker run --shm-size=2g …" if low else ""
        yield Finding(topic="space", name="shared memory", state="warn" if low else "ok", found=f"/dev/shm: {free:.1f} GiB free", mend=mend)


def installed(name: str) -> str | None:
    """Version of a distribution, read without importing it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def pinned(name: str) -> str | None:
    """The version constraints.txt asks for, where the source tree is at hand."""
    path = Path(__file__).parents[1] / "constraints.txt"
    match = re.search(rf"^{re.escape(name)}==(\S+)", path.read_text(), re.MULTILINE) if path.exists() else None
    return match[1] if match else None


def beside_python(program: str) -> str | None:
    """A program that pip installed for this interpreter, else one on PATH."""
    return shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)


def python() -> str:
    """This interpreter as a person would type it."""
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def pip(extra: str) -> str:
    """The command that adds one of the extras, with the pins."""
    return f"{python()} -m pip install -c constraints.txt -e '.[{extra}]'"


def first_line(program: str | None, option: str) -> str:
    """What a program says of its version."""
    return run([program, option])[1].splitlines()[0] if program and run([program, option])[1] else ""


def run(command: list[str]) -> tuple[int, str]:
    """Exit code and stdout; a program that hangs or is not there counts as failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 1, ""
    return done.returncode, done.stdout.strip()
