"""python -m tests.faults.hang RANK HOW NOTE WORD…: the command line, in which rank RANK is lost after some steps.

HOW: 'kill' (SIGKILL) or 'stop' (SIGSTOP) itself; 'data' or 'forward': sleep for ever there. The time is written to NOTE.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from data_shards.stream import CubeStream
from launch.cli import main
from ldm.training.vqgan import VQGANTrainer

RANK, HOW, NOTE = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
AFTER = 80  # samples: beyond the first steps, which may take long


def lose() -> None:
    NOTE.write_text(str(time.time()))
    if HOW in ("kill", "stop"):
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[HOW])
    time.sleep(3600)


def stalled(self: CubeStream, consumed: int = 0):
    for batch in batches(self, consumed):
        if batch.position >= AFTER:
            lose()
        yield batch


def hung(self: VQGANTrainer, batch, samples: int):
    if samples >= AFTER:
        lose()
    return losses(self, batch, samples)


if int(os.environ["RANK"]) == RANK:
    if HOW == "forward":
        losses, VQGANTrainer.losses = VQGANTrainer.losses, hung
    else:
        batches, CubeStream.batches = CubeStream.batches, stalled
sys.argv[1:] = sys.argv[4:]
main()
