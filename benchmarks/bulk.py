"""A bulk set of toy images through the real ledger and shard writer, while workers are killed, stopped, and deceived about the time.

For each number of workers a set is made while SIGKILLs hit workers at random moments, each of which is started again. Two workers are
stopped for longer than their leases live, and go on (split brains); clocks are wrong by up to ten minutes; one worker sees what is
published two seconds late. Equal means: every image is there once, in its place; no temporary file and no lease is left; the digest is
that of a set that one process made undisturbed; and the same command again writes nothing. `ours` is images a second of all workers,
`other` those of the one undisturbed process.

`publish_vs_plain_tar` is the time of a loop that only writes tars of the same members, over that of the shard writer, an image each:
checksums, index, band statistics and first-writer-wins publishing are what it does more. Equal means: the tars hold the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rounds import finish, row

from data_shards import durable
from data_shards.cube import Cube, CubeMeta
from data_shards.ledger import LEASE, Ledger, Units
from data_shards.manifest import Manifest, write_manifest
from data_shards.packing.units import merged, read_unit, write_unit
from data_shards.packing.verify import verify
from data_shards.reading.dataset import Dataset
from data_shards.shards.shard import Encoding, members_of
from launch.work import work

STILL_S = 3.0  # of a lease in this benchmark
LATE_S = 2.0


def toy(i: int, shape: tuple[int, int, int] = (2, 8, 8)) -> Cube:
    """Image i, a function of its number."""
    data_CHW = ((np.arange(np.prod(shape), dtype=np.int64).reshape(shape) * 40503 + i * 7919) & 0xFFF).astype(np.uint16)
    data_CHW.flat[:2] = i & 0xFFF, i >> 12  # no two are alike
    wavelengths = tuple(500.0 + 20 * c for c in range(shape[0]))
    return Cube(data_CHW=data_CHW, meta=CubeMeta(key=f"{i:09d}", wavelengths_nm=wavelengths, scale=1 / 4095, subject_id="synthetic"))


class Toys(Units):
    """A set of toy images in units, as a synthetic set is one."""

    def __init__(self, out: Path, images: int, shard: int, late_s: float = 0.0) -> None:
        self.out, self.images, self.shard, self.late_s = out, images, shard, late_s
        self.names = [f"synthetic-{number:06d}" for number in range(-(-images // shard))]
        self.seen: dict[int, float] = {}

    def published(self, number: int) -> bool:
        if read_unit(self.out / f"{self.names[number]}.tar") is None:
            return False
        return time.monotonic() - self.seen.setdefault(number, time.monotonic()) >= self.late_s

    def make(self, number: int) -> None:
        ids = range(number * self.shard, min((number + 1) * self.shard, self.images))
        write_unit(self.out / f"{self.names[number]}.tar", "synthetic", map(toy, ids))

    def size(self, number: int) -> int:
        return min(self.shard, self.images - number * self.shard)

    def finish(self) -> Manifest:
        units = [read_unit(self.out / f"{name}.tar") for name in self.names]
        manifest = merged(units, ["synthetic"], {"sample": {"count": self.images}})
        if not (self.out / "dataset.json").exists():
            write_manifest(self.out, manifest)
            durable.sweep_published(self.out)
        return manifest


def one_worker(args: argparse.Namespace) -> None:
    """This process as a worker."""
    real_time, skew = time.time, args.skew
    time.time = lambda: real_time() + skew
    args.work.mkdir(exist_ok=True)
    units = Toys(args.work, args.images, args.shard, args.late)
    k, n = args.place
    work(units, Ledger(args.work, still_s=STILL_S, beat_s=STILL_S / 10), place=(k, n), poll_s=0.2)
    units.finish()


class Workers:
    """Processes on one set, and what is done to them."""

    def __init__(self, folder: Path, args: argparse.Namespace, count: int) -> None:
        self.folder, self.args, self.count, self.chance = folder, args, count, random.Random(count)
        self.running = [self._started(k) for k in range(count)]

    def _started(self, k: int) -> subprocess.Popen:
        words = ["--work", self.folder, "--images", self.args.images, "--shard", self.args.shard, "--place", k, self.count]
        words += ["--skew", self.chance.uniform(-600, 600), "--late", LATE_S if k == self.count - 1 else 0.0]
        return subprocess.Popen([sys.executable, __file__, *map(str, words)])

    def end(self) -> int:
        """Wait until all have ended well, and kill on the way; how many were killed."""
        kills, stopped = 0, []
        if self.count > 1:
            stopped = self.running[:2]
            for process in stopped:
                process.send_signal(signal.SIGSTOP)
        resume_at = time.monotonic() + 2 * STILL_S
        while any(process.poll() is None for process in self.running):
            time.sleep(self.chance.uniform(0, 2 * self.args.pause))
            if stopped and time.monotonic() > resume_at:
                for process in stopped:
                    process.send_signal(signal.SIGCONT)
                stopped = []
            live = [k for k, process in enumerate(self.running) if process.poll() is None and process not in stopped]
            if live and kills < self.args.kills:
                k = self.chance.choice(live)
                self.running[k].kill()
                self.running[k].wait()
                self.running[k] = self._started(k)
                kills += 1
        assert {process.wait() for process in self.running} == {0}
        return kills


def faults_of(folder: Path, images: int, digest: str) -> list[str]:
    """What is wrong with a finished set."""
    dataset = Dataset(folder)
    faults = [fault for _, found in verify(folder) for fault in found]
    if dataset.keys("synthetic") != [f"{i:09d}" for i in range(images)]:
        faults.append("not every image stands once, in its place")
    faults += [f"left: {path.name}" for path in folder.iterdir() if durable.PART in path.name or path.name.startswith(LEASE)]
    return faults + ([] if dataset.digest == digest else ["another digest"])


def state(folder: Path) -> list[tuple[str, int, int]]:
    """Of each file: name, size, and when it was written."""
    return sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir())


def disturbed(folder: Path, args: argparse.Namespace, count: int, alone_per_s: float, digest: str) -> dict[str, Any]:
    """One row: a set made by so many workers."""
    began = time.perf_counter()
    kills = Workers(folder, args, count).end()
    per_s = args.images / (time.perf_counter() - began)
    faults, before = faults_of(folder, args.images, digest), state(folder)
    one_worker(argparse.Namespace(**{**vars(args), "work": folder}))
    faults += [] if state(folder) == before else ["the same command again wrote something"]
    print(f"{count:3} workers, {kills} killed: {per_s:8.0f} images/s; {'; '.join(faults) or 'every image once'}", flush=True)
    found = {"case": f"{count}_workers_{kills}_kills", "ours": per_s, "other": alone_per_s, "unit": "images/s"}
    return {**found, "ratio": per_s / alone_per_s, "equal": not faults}


def cubes(shape: tuple[int, int, int], count: int) -> Iterator[Cube]:
    return (toy(i, shape) for i in range(count))


def publish_row(folder: Path, case: str, shape: tuple[int, int, int], count: int, rounds: int) -> dict[str, Any]:
    """The shard writer beside a plain loop."""
    ours, plain, made = folder / "ours.tar", folder / "plain.tar", list(cubes(shape, count))

    def publish() -> str:
        for path in folder.glob("ours.*"):
            path.unlink()
        write_unit(ours, "synthetic", iter(made))
        return hashlib.sha256(ours.read_bytes()).hexdigest()

    def loop() -> str:
        with tarfile.open(plain, "w", format=tarfile.USTAR_FORMAT) as tar:
            for cube in made:
                for member, content in members_of(cube, Encoding(), "cube"):
                    info = tarfile.TarInfo(f"{cube.meta.key}.{member}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        return hashlib.sha256(plain.read_bytes()).hexdigest()

    return row(case, publish, loop, lambda a, b: a == b, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 images and 10 kills, within 50 s on two cores")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--shard", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=500, help="for each number of workers")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 3, 8, 16])
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two kills, on average")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=int, nargs=2, default=(0, 1), help=argparse.SUPPRESS)
    parser.add_argument("--skew", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--late", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        one_worker(args)
        return
    if args.quick:
        args.images, args.shard, args.kills, args.workers = 20_000, 250, 10, [3]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "plain").mkdir()
        rows = [
            publish_row(folder / "plain", "publish_vs_plain_tar", (16, 96, 96), 64 if args.quick else 256, args.rounds),
            publish_row(folder / "plain", "publish_vs_plain_tar_672", (16, 672, 672), 3 if args.quick else 8, args.rounds),
        ]
        began = time.perf_counter()
        one_worker(argparse.Namespace(**{**vars(args), "work": folder / "alone"}))
        alone_per_s = args.images / (time.perf_counter() - began)
        print(f"alone, undisturbed: {alone_per_s:.0f} images/s", flush=True)
        digest = Dataset(folder / "alone").digest
        rows += [disturbed(folder / f"of-{count}", args, count, alone_per_s, digest) for count in args.workers]
    finish("bulk", rows)


if __name__ == "__main__":
    main()
