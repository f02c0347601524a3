"""A rank that dies or hangs: the others end within a minute, with its name, and the run goes on from its last checkpoint."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from data_shards.durable import claimed
from data_shards.errors import TryAgain
from tests.runs import Place

ALL = os.environ.get("FAULTS") == "all"
CASES = [(how, rank, mode) for mode in ("ddp", "zero3") for how in ("SIGKILL", "SIGSTOP", "data", "forward", "kmeans") for rank in (0, 1)]
SAMPLE = [("SIGSTOP", 1, "ddp"), ("SIGKILL", 0, "ddp"), ("forward", 1, "ddp"), ("kmeans", 1, "zero3")]
DIES = ("SIGKILL", "kmeans")


@pytest.mark.parametrize(("how", "victim", "mode"), CASES if ALL else SAMPLE)
def test_the_others_end_with_the_name_of_the_one_that_is_lost(place: Place, how: str, victim: int, mode: str) -> None:
    """Nobody ends the others from outside, as torchrun would: srun and mpiexec may not."""
    name, note = f"lost-{how}-{victim}-{mode}", place.folder / f"lost-{how}-{victim}-{mode}.time"
    patience = ["vqgan.engine.hang_seconds=8"]  # minutes by default
    words = [f"vqgan.engine.mode={mode}", "vqgan.loop.samples=1000000", "vqgan.loop.checkpoint_every=24", *patience]
    run = place.run(name, "vqgan")
    codes = place.ranks.run(
        run.with_suffix(".log"),
        ["train", "vqgan", place.folder / "tiny.yaml", f"run={run}", *words],
        2,
        wrapper=["tests.faults.disturbed", victim, how, note],
        patience=55 if how in DIES else 10,  # a stopped one waits for the test to end it
    )
    assert time.time() - float(Path(f"{note}-{victim}").read_text()) < 60
    said = place.said(name, "vqgan")
    assert codes == [(-9 if how[:3] == "SIG" or how in DIES else 75) if rank == victim else 75 for rank in range(2)], (
        f"{codes}\n{said[-3000:]}"
    )
    assert f"TryAgain: rank {victim} is gone" in said, said[-3000:]
    assert how not in ("data", "forward") or f"in '{how}' for" in said, said[-3000:]
    resumed = ["train", "vqgan", place.folder / "tiny.yaml", f"run={run}", f"vqgan.engine.mode={mode}", "vqgan.loop.samples=72"]
    log = run.with_suffix(".again")
    assert place.ranks.run(log, resumed, 2) == [0, 0], log.read_text()[-3000:]


def test_two_trainings_in_one_folder_are_refused(place: Place) -> None:
    run = place.run("two", "vqgan")
    with claimed(run / "vqgan" / ".training", "training in this folder"):
        codes = place.train("two", "vqgan", "ddp", 2, expect=False)
        with pytest.raises(TryAgain, match="another process is waiting"), claimed(run / "vqgan" / ".training", "waiting"):
            pass
    assert TryAgain.exit_code in codes and "another process is training in this folder" in place.said("two", "vqgan")
    assert not (run / "run.yaml").exists()
