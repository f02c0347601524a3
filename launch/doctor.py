"""What this machine can do, and the command that adds what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from launch.machine import bf16_speed, cpu_flags, cpuinfo, memory_bytes
from ldm.search import packages
from slurm.local_daemons import SBIN

State = Literal["ok", "warn", "missing", "broken"]
GIB = 2**30
RUN_FOLDER_GIB, SHM_GIB = 5, 0.5  # the demo writes less than one; gloo and NCCL exchange through shared memory
MEMORY_GIB = 4


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report. Made by `ok`, `warn`, `missing` and `broken`.

    Attributes:
        name: what was looked at.
        state: 'ok'; 'warn' works, but not well; 'missing' and not needed by everybody; 'broken' and needed.
        found: what was found.
        mend: the command that adds or mends it; '' where all is well.
    """

    name: str
    state: State
    found: str
    mend: str = ""


def ok(name: str, found: str) -> Finding:
    return Finding(name=name, state="ok", found=found)


def warn(name: str, found: str, *, mend: str) -> Finding:
    return Finding(name=name, state="warn", found=found, mend=mend)


def missing(name: str, found: str, *, mend: str) -> Finding:
    return Finding(name=name, state="missing", found=found, mend=mend)


def broken(name: str, found: str, *, mend: str) -> Finding:
    return Finding(name=name, state="broken", found=found, mend=mend)


def examine(run_folder: Path) -> dict[str, list[Finding]]:
    """Everything by topic, in the order in which it is shown. Takes about two seconds, most of them torch's import."""
    return {
        "machine": [ok("Python", platform.python_version()), processor(), memory()],
        "torch": torch_findings(),
        "libraries": [
            needed_libraries(),
            optional("codecs", "blosc2", "pcodec", extra="codecs"),
            optional("codebooks", "vector-quantize-pytorch", extra="codebooks"),  # of kind fsq, and gradient rotation
            optional("DeepSpeed", "deepspeed", "transformers", extra="deepspeed"),  # accelerate's plugin needs transformers, undeclared
            faiss(packages.installed(), cuda_of_gpu()),
        ],
        "tools": [compiler(), mpi()],
        "SLURM": [cluster(), daemons_for_tests()],
        "space": [room_for_runs(run_folder), *shared_memory()],
    }


def processor() -> Finding:
    """Its name and how much of it this process may use."""
    name, cores = cpuinfo()
    threads = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads
    return ok("processor", f"{name}: {cores or threads} cores, {threads} threads, {usable} usable here")


def memory() -> Finding:
    """What there is, and what of it is free."""
    total, free = memory_bytes()
    text = f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB free"
    if total < MEMORY_GIB * GIB:
        return warn("memory", text, mend=f"smaller --batch, images or models: the demo needs about {MEMORY_GIB} GiB")
    return ok("memory", text)


def torch_findings() -> list[Finding]:
    """torch, its pin, GPUs and bfloat16."""
    if importlib.util.find_spec("torch") is None:
        return [broken("torch", "not installed", mend=pip("cpu"))]
    import torch

    if torch.cuda.is_available():
        return [torch_build(), *gpus(), bf16_on_gpu()]
    return [torch_build(), no_gpu(), bf16_on_cpu()]


def torch_build() -> Finding:
    """Its version against the pinned one."""
    import torch

    cuda, rocm = torch.version.cuda, torch.version.hip
    kind = f"CUDA {cuda}" if cuda else f"ROCm {rocm}" if rocm else "CPU"
    text = f"{torch.__version__} ({kind} build)"
    pin = pinned("torch")
    if pin not in (None, torch.__version__.split("+")[0]):
        return warn("torch", f"{text}, but constraints.txt pins {pin}", mend=pip("cpu"))
    return ok("torch", text)


def gpus() -> list[Finding]:
    """Each that torch reaches."""
    import torch

    each = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [ok(f"GPU {i}", f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, compute {gpu.major}.{gpu.minor}") for i, gpu in enumerate(each)]


def no_gpu() -> Finding:
    """Why torch reaches none."""
    if shutil.which("nvidia-smi"):
        return warn(
            "GPU",
            "the driver is here (nvidia-smi), but torch does not reach it",
            mend="install a CUDA build of torch (pytorch.org), then check nvidia-smi",
        )
    return missing("GPU", "none; everything runs on the CPU, slower", mend="")  # no command adds one


def bf16_on_gpu() -> Finding:
    """Whether the GPU has it."""
    import torch

    if torch.cuda.is_bf16_supported():
        return ok("bf16", "by the GPU")
    return warn("bf16", "not by this GPU", mend="engine.precision=fp32")


def bf16_on_cpu() -> Finding:
    """Whether it is faster than float32 here."""
    units = [flag for flag in ("amx_bf16", "avx512_bf16", "bf16") if flag in cpu_flags()]
    speed = bf16_speed()
    text = f"{', '.join(units) or 'no instructions of the CPU for it'}; a matrix product runs {speed:.2g} x as fast as in fp32"
    if speed > 1.1:
        return ok("bf16", text)
    return warn("bf16", text, mend="engine.precision=fp32 is the faster one here")


def needed_libraries() -> Finding:
    """Every library that the package names as its own requirement."""
    requirements = [Requirement(text) for text in importlib.metadata.requires("retinaforge") or []]
    needed = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    if unmet := [text for each in needed if (text := unmet_by(each))]:
        return broken("needed", "; ".join(unmet), mend=pip("cpu"))
    return ok("needed", ", ".join(sorted(f"{each.name} {installed(each.name)}" for each in needed)))


def unmet_by(requirement: Requirement) -> str | None:
    """What is wrong with the library that is asked for; None: nothing."""
    version = installed(requirement.name)
    if version is None:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version}, needed {requirement.specifier}"
    return None


def optional(name: str, *libraries: str, extra: str) -> Finding:
    """A group of libraries that stands or falls together."""
    versions = {library: installed(library) for library in libraries}
    text = ", ".join(f"{library} {version or 'not installed'}" for library, version in versions.items())
    return ok(name, text) if all(versions.values()) else missing(name, text, mend=pip(extra))


def faiss(versions: dict[str, str], cuda: str | None) -> Finding:
    """The packages of faiss write the same folder: with two installed the later one silently removes parts of the other.

    Args:
        cuda: version of CUDA by which torch reaches a GPU; None where it reaches none.
    """
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    fitting, away = packages.fitting(cuda), f"{python()} -m pip uninstall -y {' '.join(versions)} && "
    if not versions:
        return missing("faiss", "not installed: nearest neighbours by torch, which takes longer on a CPU", mend=pip(fitting))
    if len(versions) > 1:
        return broken("faiss", f"{text}: all own the folder faiss/, one is damaged", mend=away + pip(fitting))
    [name] = versions
    if cuda and not packages.fits(name, cuda):
        return warn("faiss", f"{text} does not use this GPU (CUDA {cuda}); the audit searches by torch there", mend=away + pip(fitting))
    if cuda is None and name != "faiss-cpu":
        return warn("faiss", f"{text}, but torch reaches no GPU; it may not load", mend=away + pip(fitting))
    return ok("faiss", text)


def cuda_of_gpu() -> str | None:
    """Version of CUDA by which torch reaches a GPU; None where it reaches none."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch.version.cuda if torch.cuda.is_available() else None


def compiler() -> Finding:
    """g++ and ninja, by which DeepSpeed builds its operators."""
    gxx, ninja = shutil.which("g++"), beside_python("ninja")
    text = "g++ {}, ninja {} (DeepSpeed builds with both)".format(
        first_line(gxx, "-dumpfullversion") or "not found", first_line(ninja, "--version") or "not found"
    )
    mends = ["apt-get install g++"] * (not gxx) + [f"{python()} -m pip install ninja"] * (not ninja)
    return missing("compiler", text, mend=" && ".join(mends)) if mends else ok("compiler", text)


def mpi() -> Finding:
    """mpi4py and a program that starts it."""
    mpi4py, mpiexec = installed("mpi4py"), beside_python("mpiexec")
    text = f"mpi4py {mpi4py or 'not installed'}, {mpiexec or 'no mpiexec'}"
    return ok("MPI", text) if mpi4py and mpiexec else missing("MPI", text, mend=pip("mpi"))


def cluster() -> Finding:
    """The one that this machine belongs to."""
    mend = "log in to a cluster; meanwhile: retinaforge submit --local | --dry-run"
    if not shutil.which("sbatch"):
        return missing("cluster", "no sbatch", mend=mend)
    if run(["scontrol", "ping"])[0] != 0:
        return missing("cluster", "sbatch is here, but no controller answers", mend=mend)
    return ok("cluster", "sbatch is here, and its controller answers")


def daemons_for_tests() -> Finding:
    """What the tests and `slurm-local` start for themselves."""
    daemons = ("slurmctld", "slurmd", "munged")
    if absent := [name for name in daemons if shutil.which(name, path=SBIN) is None]:
        return missing("for the tests", f"no {', '.join(absent)}", mend="apt-get install --no-install-recommends slurm-wlm munge")
    return ok("for the tests", ", ".join(daemons))


def room_for_runs(run_folder: Path) -> Finding:
    """Whether runs can be written there, and how many bytes of them."""
    there = run_folder.absolute()
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK):
        return broken("runs", f"{there} may not be written to", mend=f"ls -ld {there}; choose another folder")
    free_gib = shutil.disk_usage(there).free / GIB
    text = f"{run_folder}: {free_gib:.0f} GiB free"
    return ok("runs", text) if free_gib >= RUN_FOLDER_GIB else warn("runs", text, mend=f"df -h {there}; free some space")


def shared_memory() -> list[Finding]:
    """Its free part; nothing on a system that has none."""
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return []
    free_gib = shutil.disk_usage(shm).free / GIB
    text = f"/dev/shm: {free_gib:.1f} GiB free"
    if free_gib < SHM_GIB:
        return [warn("shared memory", text, mend="docker run --shm-size=2g …")]
    return [ok("shared memory", text)]


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
    """What a program says of its version; '' where there is none, or it says nothing."""
    return next(iter(run([program, option])[1].splitlines()), "") if program else ""


def run(command: list[str]) -> tuple[int, str]:
    """Exit code and stdout; a program that hangs or is not there counts as failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 1, ""
    return done.returncode, done.stdout.strip()
