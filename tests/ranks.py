"""Ranks without their start-up: a process that has everything imported forks them, so that a start takes seconds in place of many.

`python -m tests.ranks` is that process: it reads one JSON object a line ({"words", "world", "environment", "log", "wrapper"}), forks a
child a rank, and answers with their exit codes. When one ends badly the others get SIGKILL, as with a lost job, at once or later.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Ranks:
    """The forking process, from outside."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            environment.pop(name, None)
        words = [sys.executable, "-m", "tests.ranks"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True, **pipes)

    def run(
        self, log: Path, words: list[object], world: int, *, wrapper: list[object] = (), patience: float = 0, **environment: str
    ) -> list[int]:
        """Exit codes by rank of the command line with these words; negative for a signal. `log` gets what all of them say.

        Args:
            wrapper: a module that is run in place of the command line, and words before the others.
            patience: seconds that the others have once one has ended badly.
        """
        told = {"words": [*map(str, words)], "world": world, "environment": environment, "log": str(log), "patience": patience}
        told["wrapper"] = [*map(str, wrapper)]
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the forking process ended with {self.process.wait()}"
        return json.loads(answer)

    def close(self) -> None:
        """End it, and what it started, if that is left."""
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@functools.cache
def shared() -> Ranks:
    """The forking process of this session of tests; it ends with it."""
    server = Ranks()
    atexit.register(server.close)
    return server


def serve() -> None:
    """Answer until the input ends."""
    with contextlib.suppress(ImportError):  # an extra
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 - DeepSpeed imports it late, and it takes seconds
        import transformers  # noqa: F401

    import launch.build
    import launch.cli
    import launch.stages  # noqa: F401
    import ldm.training.engine
    import ldm.training.loop  # noqa: F401

    gc.collect()
    gc.freeze()  # DeepSpeed collects garbage in every rank: a second each, and a copy of every page that it looks at
    answers = os.fdopen(os.dup(1), "w")
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked safely"
    for line in sys.stdin:
        told = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = {}
        for rank in range(told["world"]):
            if (pid := os.fork()) == 0:
                become(told, rank, port)
            children[pid] = rank
        print(json.dumps(wait(children, told["patience"])), file=answers, flush=True)


def wait(children: dict[int, int], patience: float) -> list[int]:
    """Exit codes by rank, of all of these."""
    codes: dict[int, int] = {}
    failed = float("inf")
    while len(codes) < len(children):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[children[pid]] = os.waitstatus_to_exitcode(status)
            failed = min(failed, time.monotonic()) if codes[children[pid]] else failed
            continue
        if time.monotonic() - failed >= patience:
            for other in [child for child, rank in children.items() if rank not in codes]:
                os.kill(other, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[rank] for rank in range(len(children))]


def become(told: dict, rank: int, port: int) -> None:
    """In a child: this rank, to its end."""
    code = 1
    try:
        if told["world"] > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": told["world"], "LOCAL_WORLD_SIZE": told["world"]}
            os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.environ.update(told["environment"])
        log = os.open(told["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.close(0)
        module, *before = told["wrapper"] or ["launch"]
        sys.argv = [module, *before, *told["words"]]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
