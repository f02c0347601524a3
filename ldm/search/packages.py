"""Which package of faiss is installed, and which one fits a machine. Imports neither torch nor faiss."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import sys
from functools import cache

FAISS = (
    "faiss-cpu",
    "faiss-gpu",
    "faiss-gpu-cu11",
    "faiss-gpu-cu12",
    "faiss-gpu-cu12-cuvs",
    "faiss-gpu-cu13-cuvs",
    "faiss-gpu-cuvs",
    "faiss-cuda",
)
"""Packages on PyPI that write the folder faiss/; with two of them installed the later one has overwritten parts of the other."""


@cache
def installed() -> dict[str, str]:
    """Version of each package of faiss that is installed."""
    found = {}
    for name in FAISS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def fitting(cuda: str | None) -> str:
    """The extra of ours whose faiss runs on a machine.

    Args:
        cuda: version that torch was built for, where it reaches a GPU; None where there is none.
    """
    if cuda is None:
        return "cpu"
    return "gpu-cuda13" if int(cuda.split(".")[0]) >= 13 else "gpu"


def fits(package: str, cuda: str) -> bool:
    """Whether a package of faiss uses GPUs under this version of CUDA: those without a number are built for 12."""
    number = re.search(r"-cu(\d\d)", package)
    return package != "faiss-cpu" and int(number[1] if number else 12) == int(cuda.split(".")[0])


def mend(versions: dict[str, str], extra: str) -> str:
    """The command that leaves one package of faiss, that of an extra of ours."""
    python = shlex.quote(sys.executable)
    away = f"{python} -m pip uninstall -y {' '.join(versions)} && " if versions else ""
    return f"{away}{python} -m pip install -c constraints.txt -e '.[{extra}]'"
