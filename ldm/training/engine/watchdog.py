"""Who is gone? Ranks tell each other that they live; when one stops, the others end with its name instead of waiting for it.

A collective among ranks of which one has died or hangs waits for minutes, and its error names nobody. Each rank therefore
beats every few seconds into a store that rank 0 serves, apart from the training's own. Rank 0 watches all beats, the others
watch rank 0. A process that is dead, stopped or cut off misses its beats; one whose training hangs still beats, but makes
no progress.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import TCPStore

BEAT_S = 2.0
SILENT_S = 25.0  # a rank that was not heard for so long is gone
EXIT_CODE = 75


class Watchdog:
    """One rank's beats, and its view of the others.

    Args:
        address: host and port of the store; rank 0 serves it.
        stalled_s: a rank that beats, but is behind the others and has not moved for so long, hangs.
        give_up: called with the verdict on every rank; ends the process.
    """

    def __init__(
        self, rank: int, world: int, address: tuple[str, int], *, stalled_s: float, give_up: Callable[[str], None] | None = None
    ) -> None:
        self.rank, self.world, self.stalled_s = rank, world, stalled_s
        self.give_up = give_up or self._exit
        self.progress, self.heard, self.verdict, self.closed = 0, time.monotonic(), "", False
        self.store = TCPStore(*address, world, is_master=rank == 0, wait_for_workers=False, timeout=timedelta(seconds=SILENT_S))
        self.store.set(f"who/{rank}", f"{socket.gethostname()}, process {os.getpid()}")
        self.threads = [threading.Thread(target=work, daemon=True, name="watchdog") for work in (self._beat, self._judge)]
        for thread in self.threads:
            thread.start()

    def moved(self) -> None:
        """The training of this rank has come one step further."""
        self.progress += 1

    def close(self, error: BaseException | None = None) -> None:
        """This rank leaves: its silence means nothing from now on. With an error, the others are told to leave too."""
        self.closed = True
        with contextlib.suppress(RuntimeError):  # the one who would answer may have left already
            self.store.set(f"done/{self.rank}", "1")
            if error is not None:
                self.store.set("gone", f"rank {self.rank} ended: {error}")

    def wait_for_verdict(self) -> str:
        """Who is gone, as soon as that is known; after a collective has failed. Empty when all are heard."""
        until = time.monotonic() + SILENT_S + 3 * BEAT_S
        while not self.verdict and time.monotonic() < until:
            time.sleep(0.2)
        return self.verdict

    def _beat(self) -> None:
        number = 0
        while not self.closed:
            number += 1
            try:
                self.store.set(f"beat/{self.rank}", f"{number} {self.progress}")
                if self.store.check(["gone"]):
                    self.verdict = self.store.get("gone").decode()
                if self.rank != 0:
                    self.store.get("beat/0")
                self.heard = time.monotonic()
            except RuntimeError:  # the store is gone or does not answer: silence is judged by the clock
                pass
            time.sleep(BEAT_S)

    def _judge(self) -> None:
        last: dict[int, tuple[str, float, int, float]] = {}
        while not self.closed:
            time.sleep(BEAT_S)
            if not self.verdict and time.monotonic() - self.heard > SILENT_S:
                self.verdict = f"rank 0 is gone: not heard for {SILENT_S:.0f} s"
            if self.rank == 0 and not self.verdict:
                with contextlib.suppress(RuntimeError):  # the store ends with the training
                    self._look(last)
            if self.verdict and not self.closed:
                self.give_up(self.verdict)
                return

    def _look(self, last: dict[int, tuple[str, float, int, float]]) -> None:
        """Rank 0: compare each rank's beat and progress with those of the last look."""
        now = time.monotonic()
        for rank in range(self.world):
            beat = self.store.get(f"beat/{rank}").decode() if self.store.check([f"beat/{rank}"]) else "0 0"
            progress = int(beat.split()[1])
            before = last.get(rank, (beat, now, progress, now))
            last[rank] = (beat, before[1] if before[0] == beat else now, progress, before[3] if before[2] == progress else now)
        front = max(seen[2] for seen in last.values())
        for rank, (_, beaten, progress, moved) in last.items():
            if self.store.check([f"done/{rank}"]):
                continue
            if now - beaten > SILENT_S:
                why = f"not heard for {SILENT_S:.0f} s"
            elif progress < front and now - moved > self.stalled_s:
                why = f"still at step {progress} for {self.stalled_s:.0f} s, others are at {front}"
            else:
                continue
            who = self.store.get(f"who/{rank}").decode() if self.store.check([f"who/{rank}"]) else "never heard"
            self.verdict = f"rank {rank} is gone ({who}): {why}"
            self.store.set("gone", self.verdict)
            time.sleep(2 * BEAT_S)  # the others hear of it before the store ends with this process
            return

    @staticmethod
    def _exit(verdict: str) -> None:
        print(
            f"TryAgain: {verdict}\n  mend:     run the same command again; it goes on from the last checkpoint", file=sys.stderr, flush=True
        )
        os._exit(EXIT_CODE)
