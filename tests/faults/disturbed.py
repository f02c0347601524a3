"""python -m tests.faults.disturbed RANKS HOW NOTE WORD…: the command line, in which something happens to these ranks after some steps.

HOW: 'data' or 'forward': they sleep there for ever. 'kmeans': they die in an iteration of a later epoch's k-means. 'nan': one term of
one micro batch is not finite. Else signals that they send themselves, such as SIGKILL or SIGINT+SIGINT; a number between two is a pause
in seconds. The time is written to NOTE.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from data_shards.reading.stream import CubeStream
from launch.cli import main
from ldm.training import reseeding
from ldm.training.vqgan import VQGANTrainer

RANKS, HOW, NOTE = sys.argv[1].split(","), sys.argv[2], Path(f"{sys.argv[3]}-{os.environ['RANK']}")
AFTER = 64  # samples: beyond the steps after a start, which may take long (watchdog.EARLY)


def disturb() -> None:
    if NOTE.exists() and HOW not in ("data", "forward"):
        return
    NOTE.write_text(str(time.time()))
    for what in HOW.split("+"):
        if what in ("data", "forward"):
            time.sleep(3600)
        elif what.isdigit():
            time.sleep(int(what))
        else:
            os.kill(os.getpid(), signal.Signals[what])


def stalled(self: CubeStream, consumed: int = 0):
    for batch in batches(self, consumed):
        if batch.position >= AFTER:
            disturb()
        yield batch


def hung(self: VQGANTrainer, batch, samples: int):
    if samples >= AFTER:
        disturb()
    return losses(self, batch, samples)


def spoiled(self: VQGANTrainer, batch, samples: int):
    found, terms = losses(self, batch, samples)
    if samples >= AFTER and not NOTE.exists():
        NOTE.touch()
        terms["loss/l1"] = terms["loss/l1"] * float("nan")
    return found, terms


def killed(*args, **options):
    def watch(done: int, *_: object) -> None:
        if done == 1:
            NOTE.write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    again = options["start_KD"] is not None  # a later epoch's
    return kmeans(*args, **options, watch=watch if again else None)


if os.environ["RANK"] in RANKS:
    if HOW == "kmeans":
        kmeans, reseeding.kmeans = reseeding.kmeans, killed
    elif HOW in ("forward", "nan"):
        losses, VQGANTrainer.losses = VQGANTrainer.losses, hung if HOW == "forward" else spoiled
    else:
        batches, CubeStream.batches = CubeStream.batches, stalled
sys.argv[1:] = sys.argv[4:]
main()
