"""Who is gone? Ranks tell each other that they live; when one stops, the others end with its name instead of waiting for it.

A collective among ranks of which one has died or hangs waits for minutes, and its error names nobody. Each rank therefore
beats every few seconds into a store that rank 0 serves, apart from the training's own. Rank 0 watches all beats, the others
watch rank 0. A process that is dead, stopped or cut off misses its beats. One whose training hangs still beats, and says that it
has been in one phase for too long, without waiting for anybody, while others wait or are further on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from datetime import timedelta

from torch.distributed import DistNetworkError, TCPStore

from ldm.comm import Communicator

LOGGER = logging.getLogger("retinaforge")
BEAT_S = 2.0
SILENT_S = 25.0  # a rank that was not heard for so long is gone
CUT_S = 10.0  # as long may rank 0 have left before the others, its store with it
EXIT_CODE = 75
FIRST = "data"  # the phase that a step begins with
SLOW = frozenset({"start", "epoch", "validate", "checkpoint"})  # phases in which one rank may work for minutes while the others wait
EARLY = 5  # steps after a start or a change of the networks, in which libraries compile and caches fill
WAITING_IN = (os.path.join("torch", "distributed", "distributed_c10d.py"), os.path.join("deepspeed", "comm", ""))


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself: phases entered, the present one, seconds in it, whether that is too long, whether it waits for others."""

    number: int = 0
    progress: int = 0
    phase: str = "start"
    seconds: float = 0.0
    late: bool = False
    waiting: bool = False


class Pace:
    """How far this rank is, and whether its present phase lasts too long.

    Args:
        hang_s: a phase of a step that takes longer, and five times as long as the longest so far, is a hang, if others wait.
        patience_s: the same for phases that may take long, and for the steps after a start or a change of the networks.
    """

    def __init__(self, *, hang_s: float, patience_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.hang_s, self.patience_s, self.clock = hang_s, patience_s, clock
        self.progress, self.phase, self.since, self.longest_s = 0, "start", clock(), 0.0
        self.steps, self.early_until, self.seen = 0, EARLY, {"start"}

    def entered(self, phase: str) -> None:
        """The training goes on with another phase."""
        now = self.clock()
        if not self._may_take_long():
            self.longest_s = max(self.longest_s, now - self.since)
        self.progress, self.phase, self.since = self.progress + 1, phase, now
        self.steps += phase == FIRST
        if phase in SLOW and phase not in self.seen:  # the first validation computes in another mode
            self.seen.add(phase)
            self.changed()

    def changed(self) -> None:
        """What is computed from here on is new: the next steps may take long."""
        self.early_until = self.steps + EARLY

    def late(self) -> bool:
        """Whether the present phase lasts too long."""
        return self.clock() - self.since > max(self.hang_s, self.patience_s if self._may_take_long() else 5 * self.longest_s)

    def _may_take_long(self) -> bool:
        return self.phase in SLOW or self.steps <= self.early_until


class Watchdog:
    """One rank's beats, and its view of the others.

    Args:
        store: that rank 0 serves.
        pace: of this rank.
        give_up: called with the verdict on every rank; ends the process.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        store: TCPStore,
        pace: Pace,
        *,
        give_up: Callable[[str], None] | None = None,
    ) -> None:
        self.rank, self.world, self.pace = rank, world, pace
        self.give_up = give_up or self._exit
        self.heard, self.verdict, self.closed = time.monotonic(), "", False
        self.main = threading.main_thread().ident
        self.store = store
        self.store.set(f"who/{rank}", f"{socket.gethostname()}, process {os.getpid()}")
        self.threads = [threading.Thread(target=work, daemon=True, name="watchdog") for work in (self._beat, self._judge)]
        for thread in self.threads:
            thread.start()

    def beat(self, number: int) -> Beat:
        """This rank, now."""
        pace, late = self.pace, self.pace.late()
        return Beat(number, pace.progress, pace.phase, time.monotonic() - pace.since, late, late and self._waits())

    def _waits(self) -> bool:
        """The main thread is in a collective: it is not the one that hangs."""
        frame = sys._current_frames().get(self.main)
        while frame is not None:
            if any(place in frame.f_code.co_filename for place in WAITING_IN):
                return True
            frame = frame.f_back
        return False

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
                self.store.set(f"beat/{self.rank}", json.dumps(astuple(self.beat(number))))
                if self.store.check(["gone"]):
                    self.verdict = self.store.get("gone").decode()
                if self.rank != 0:
                    self.store.get("beat/0")
                self.heard = time.monotonic()
            except DistNetworkError:  # the connection is cut: rank 0's process has ended
                time.sleep(CUT_S)
                self.verdict = self.verdict or "rank 0 is gone: it closed its connection"
                return
            except RuntimeError:
                LOGGER.debug("rank %d: the store did not answer", self.rank)  # silence is judged by the clock
            time.sleep(BEAT_S)

    def _judge(self) -> None:
        heard: dict[int, tuple[int, float]] = {}  # rank to (number of its last beat, when that was first seen)
        while not self.closed:
            time.sleep(BEAT_S)
            if not self.verdict and time.monotonic() - self.heard > SILENT_S:
                self.verdict = f"rank 0 is gone: not heard for {SILENT_S:.0f} s"
            if self.rank == 0 and not self.verdict:
                with contextlib.suppress(RuntimeError):  # the store ends with the training
                    self._look(heard)
            if self.verdict and not self.closed:
                self.give_up(self.verdict)
                return

    def _look(self, heard: dict[int, tuple[int, float]]) -> None:
        """Rank 0: who is silent, who hangs?"""
        now = time.monotonic()
        there = [rank for rank in range(self.world) if not self.store.check([f"done/{rank}"])]
        beats = {
            rank: Beat(*json.loads(self.store.get(f"beat/{rank}"))) if self.store.check([f"beat/{rank}"]) else Beat() for rank in there
        }
        for rank, beat in beats.items():
            if rank not in heard or heard[rank][0] != beat.number:
                heard[rank] = (beat.number, now)
        if lost := _gone({rank: (beat, now - heard[rank][1]) for rank, beat in beats.items()}):
            rank, why = lost
            who = self.store.get(f"who/{rank}").decode() if self.store.check([f"who/{rank}"]) else "never heard"
            self.verdict = f"rank {rank} is gone ({who}): {why}"
            self.store.set("gone", self.verdict)
            time.sleep(2 * BEAT_S)  # the others hear of it before the store ends with this process

    @staticmethod
    def _exit(verdict: str) -> None:
        print(
            f"TryAgain: {verdict}\n  mend:     run the same command again; it goes on from the last checkpoint", file=sys.stderr, flush=True
        )
        os._exit(EXIT_CODE)


def watching(comm: Communicator, pace: Pace, host: str) -> Watchdog:
    """This rank's watchdog, over a store that rank 0 serves on `host`, at a port that is free. Collective."""

    def store(port: int, *, serves: bool) -> TCPStore:
        return TCPStore(host, port, comm.world, is_master=serves, wait_for_workers=False, timeout=timedelta(seconds=SILENT_S))

    served = store(0, serves=True) if comm.rank == 0 else None
    port = comm.broadcast(served.port if served else None)
    return Watchdog(comm.rank, comm.world, served or store(port, serves=False), pace)


def _gone(seen: dict[int, tuple[Beat, float]]) -> tuple[int, str] | None:
    """The rank that the others wait for, and why; None while all is well. `seen`: rank to (last beat, seconds since it came)."""
    last = min((beat.progress for beat, _ in seen.values()), default=0)
    for rank, (beat, silent_s) in seen.items():
        if silent_s > SILENT_S:
            return rank, f"not heard for {SILENT_S:.0f} s"
        others = [other for r, (other, _) in seen.items() if r != rank]
        held_up = any(other.progress > beat.progress or other.waiting for other in others)
        if beat.progress == last and beat.late and not beat.waiting and held_up:
            return rank, f"in {beat.phase!r} for {beat.seconds:.0f} s, and others wait"
    return None
