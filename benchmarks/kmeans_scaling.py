"""K-means on 1, 2 and 4 ranks of this machine, over MPI and over gloo: CPU time a vector, and what an iteration sends.

All ranks together hold the same vectors, one thread each. `ratio` is the CPU time a vector and iteration of one process over that of a
rank: 1 means that work is only divided. What ranks spend in collectives is given apart, for MPI waits by spinning. Equal means: the
same codes on all ranks, and within 1e-6 the inertia of one process.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kmeans import K, latents
from rounds import arguments, finish

from ldm.comm import Alone, Group
from ldm.kmeans.lloyd import kmeans

ITERATIONS = 10


class Timed:
    """Another communicator, and what is spent in it."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.rank, self.world = inner, inner.rank, inner.world
        self.wall = self.cpu = self.sent = 0.0
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        def call(*words: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return getattr(self.inner, name)(*words)
            finally:
                self.wall += time.perf_counter() - wall
                self.cpu += time.process_time() - cpu
                if name == "all_reduce_sum_" and words[0].ndim == 2:
                    self.calls, self.sent = self.calls + 1, words[0].numel() * words[0].element_size()

        return call


def rank(kind: str, n: int, d: int) -> None:
    torch.set_num_threads(1)
    if kind == "mpi":
        from slurm.rank import MpiCommunicator

        inner = MpiCommunicator()
    elif kind == "gloo":
        torch.distributed.init_process_group("gloo")
        inner = Group()
    else:
        inner = Alone()
    mine = np.arange(inner.rank, n, inner.world)
    z, start = latents(n, d), latents(K, d)
    own = torch.from_numpy(z[mine])
    how = {"k": K, "seed": 0, "start_KD": torch.from_numpy(start), "reseed": False, "tolerance": -1.0}
    kmeans(own, mine, comm=inner, iterations=2, **how)
    comm, used, began = Timed(inner), time.process_time(), time.perf_counter()
    found = kmeans(own, mine, comm=comm, iterations=ITERATIONS, **how)
    wall = time.perf_counter() - began
    told = {
        "cpu": time.process_time() - used - comm.cpu,
        "wall": wall,
        "waited": comm.wall,
        "sent": comm.sent,
        "calls": comm.calls,
        "inertia": found.inertia,
        "codes": hashlib.sha256(found.codes_KD.numpy().tobytes()).hexdigest(),
    }
    gathered = inner.gather(told)
    if inner.rank == 0:
        print("RESULT " + json.dumps(gathered), flush=True)
    os._exit(0)


def measured(kind: str, world: int, n: int, d: int) -> list[dict[str, Any]]:
    here = [__file__, "--rank", kind, str(n), str(d)]
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or "mpiexec"
    before = {
        "mpi": [mpiexec, "-n", str(world), sys.executable],
        "gloo": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world)],
        "alone": [sys.executable],
    }[kind]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*before, *here], env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert "RESULT " in done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULT ")[1].splitlines()[0])


def main() -> None:
    args = arguments(__doc__.partition("\n")[0])
    n, d = (100_000, 8) if args.quick else (400_000, 8)
    alone = [measured("alone", 1, n, d)[0] for _ in range(args.rounds)]
    one = sorted(run["cpu"] for run in alone)[args.rounds // 2] / (n * ITERATIONS)
    rows = []
    for kind in ("mpi", "gloo"):
        for world in (1, 2, 4):
            runs = [measured(kind, world, n, d) for _ in range(args.rounds)]
            each = sorted(sum(rank["cpu"] for rank in run) for run in runs)[args.rounds // 2] / (n * ITERATIONS)
            waited = min(max(rank["waited"] for rank in run) for run in runs) / ITERATIONS
            equal = all(rank["codes"] == run[0]["codes"] for run in runs for rank in run)
            equal = equal and all(abs(run[0]["inertia"] / alone[0]["inertia"] - 1) < 1e-6 for run in runs)
            sent = runs[0][0]["sent"]
            rows.append({"case": f"{kind}_{world}_ranks", "ours": each, "other": one, "unit": "CPU s", "ratio": one / each, "equal": equal})
            rows[-1] |= {"bytes_an_iteration": sent, "collectives_s_an_iteration": waited}
            print(
                f"{kind:5} {world} ranks   {1e9 * each:7.1f} CPU ns a vector   ratio {one / each:5.2f}   {sent:9.0f} bytes an iteration   "
                f"{1000 * waited:6.2f} ms in collectives   equal {equal}",
                flush=True,
            )
    finish("kmeans_scaling", rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    main()
