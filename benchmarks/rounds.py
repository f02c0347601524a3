"""What the benchmarks share: timing by turns, memory, and the last line."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def parser(about: str) -> argparse.ArgumentParser:
    """--quick and --rounds."""
    options = argparse.ArgumentParser(description=about)
    options.add_argument("--quick", action="store_true", help="smaller, within 50 s on two cores")
    options.add_argument("--rounds", type=int, default=3, help="rounds; the median counts (default 3)")
    return options


def arguments(about: str) -> argparse.Namespace:
    """What was said of them."""
    return parser(about).parse_args()


def by_turns(ours: Callable[[], Any], other: Callable[[], Any], rounds: int) -> tuple[list[Any], list[float], list[float]]:
    """Run both by turns, so that a busy machine slows both: last results, median wall seconds, median CPU seconds.

    One round before the first is not counted: threads start, caches fill.
    """
    results: list[Any] = [None, None]
    wall, cpu = ([[], []] for _ in range(2))
    for turn in range(rounds + 1):
        for side, work in enumerate((ours, other)):
            began, used = time.perf_counter(), time.process_time()
            results[side] = work()
            if turn:
                wall[side].append(time.perf_counter() - began)
                cpu[side].append(time.process_time() - used)
    return results, *([statistics.median(times) for times in kind] for kind in (wall, cpu))


def row(case: str, ours: Callable[[], Any], other: Callable[[], Any], same: Callable[[Any, Any], bool], rounds: int) -> dict[str, Any]:
    """One row of the table; `ratio` is speed, ours over the other's."""
    results, wall, cpu = by_turns(ours, other, rounds)
    found = {
        "case": case,
        "ours": wall[0],
        "other": wall[1],
        "unit": "s",
        "ratio": wall[1] / wall[0],
        "cpu_ratio": cpu[1] / cpu[0],
        "equal": bool(same(*results)),
    }
    print(f"{case:32} ours {wall[0]:8.3f} s   other {wall[1]:8.3f} s   ratio {found['ratio']:7.2f}   equal {found['equal']}", flush=True)
    return found


def resident_mib(name: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def finish(name: str, rows: list[dict[str, Any]], not_measured: dict[str, str] | None = None) -> None:
    """The last line: one JSON object."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(json.dumps({"benchmark": name, "machine": machine, "rows": rows, "not_measured": not_measured or {}}))
