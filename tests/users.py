"""Another user, as whom tests that run as root do what root may do everywhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    """Who is not root stays who he is."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def open_way_to(folder: Path) -> None:
    """Others may come to the place of a test."""
    for above in (folder, *folder.parents[:3]):  # as deep as a worker of pytest-xdist puts it
        above.chmod(above.stat().st_mode | stat.S_IXGRP | stat.S_IXOTH)
