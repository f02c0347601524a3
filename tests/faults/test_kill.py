"""SIGKILL at every durable step of a commit: the same command again goes on, and ends bit for bit as if nothing had happened.

`make faults` runs every step under every stage; `make test` a few of them.
"""

from __future__ import annotations

import os
import re
from functools import cache

import pytest

from tests.runs import LOOP, Place

ALL = os.environ.get("FAULTS") == "all"
MODES = ("ddp", "zero1", "zero2", "zero3")
SAMPLE = [
    ("vqgan", "zero3", 0, "replace COMMIT.json"),
    ("vqgan", "zero3", 1, "write rank-00001.safetensors"),
    ("diffusion", "zero2", 0, "unlink COMMIT.json"),
    ("diffusion", "zero2", 1, "fsync samples-000000000024"),
]


@cache
def steps_of_a_commit(place: Place, stage: str, mode: str) -> dict[int, list[tuple[int, str]]]:
    """Rank to numbered durable steps of the first commit that prunes, as an undisturbed run names them. That run is the yardstick."""
    found = {}
    for rank, name in ((0, f"whole-{mode}"), (1, f"again-{mode}")):
        place.train(name, stage, mode, 2, rank=rank, step=0, expect=True)
        named = [(int(n), what) for n, what in re.findall(r"^step (\d+): (.*)$", place.said(name, stage), re.MULTILINE)]
        # rank 0 begins a commit with its folder, the others with the write of their first parts; the fourth is that at 24 samples
        if rank == 0:
            begins = [[what for _, what in named].index(f"mkdir samples-{samples:012d}") for samples in (24, 32)]
        else:
            begins = [i for i, (_, what) in enumerate(named) if what == "write rank-00001.safetensors"][3:5]
        found[rank] = named[begins[0] : begins[1]]
    assert end(place, f"whole-{mode}", stage) == end(place, f"again-{mode}", stage), "two undisturbed runs differ"
    return found


def end(place: Place, name: str, stage: str) -> tuple[object, ...]:
    """Losses, learning rates and what else is logged; weights, moments, averages, codebook, discriminator; sample ids."""
    return place.curve(name, stage), place.parts(name, stage), place.ids(name, stage)


def killed_and_resumed(place: Place, stage: str, mode: str, rank: int, step: int) -> None:
    name = f"killed-{mode}-{rank}-{step}"
    codes = place.train(name, stage, mode, 2, rank=rank, step=step)
    assert codes[rank] == -9, f"{codes}\n{place.said(name, stage)[-2000:]}"
    reached = place.curve(name, stage)[-1]["samples"]
    assert reached < LOOP["samples"]
    newest = place.store(name, stage).newest(progress_exists=True)
    assert newest.samples >= reached - LOOP["checkpoint_every"], "more than one interval was lost"
    place.train(name, stage, mode, 2, expect=True)
    assert end(place, name, stage) == end(place, f"whole-{mode}", stage)


@pytest.mark.skipif(ALL, reason="the whole matrix runs")
@pytest.mark.parametrize(("stage", "mode", "rank", "what"), SAMPLE)
def test_a_kill_at_a_step_of_a_commit_loses_nothing(place: Place, stage: str, mode: str, rank: int, what: str) -> None:
    named = steps_of_a_commit(place, stage, mode)[rank]
    killed_and_resumed(place, stage, mode, rank, next(step for step, said in named if said == what))


@pytest.mark.skipif(not ALL, reason="make faults")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", ["vqgan", "diffusion"])
def test_a_kill_at_every_step_of_a_commit_loses_nothing(place: Place, stage: str, mode: str) -> None:
    named = steps_of_a_commit(place, stage, mode)
    assert len(named[0]) >= 12 and len(named[1]) >= 4, named
    for rank in (0, 1):
        for step, what in named[rank]:
            print(f"{stage}, {mode}: rank {rank} killed at step {step}: {what}", flush=True)
            killed_and_resumed(place, stage, mode, rank, step)
