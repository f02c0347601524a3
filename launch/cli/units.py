"""Work in units from the command line: by this process, by further ones beside it, and by those that a launcher started."""

from __future__ import annotations

from typing import Any

import typer

from launch.cli.display import Hidden, Terminal
from launch.work import Phases, make_phases
from slurm.rank import placement


def made(phases: Phases, *, workers: int = 1, unit: str = "image", task: tuple[int, int] = (1, 1)) -> Any:
    """What the last of some phases makes of its units, as `make_phases`.

    All but the first of the processes that a launcher started end here: one tells of it.

    Args:
        task: (K, N), the K-th of N tasks, K from 1, each of which may be several processes.
    """
    place, (k, n) = placement(), task
    display = Hidden() if place.rank else Terminal()
    result = make_phases(phases, display, ((k - 1) * place.world + place.rank, n * place.world), workers=workers, unit=unit)
    if place.rank:
        raise typer.Exit
    return result
