"""A bulk set of toy images through the real ledger and shard writer, while workers are killed, stopped, and deceived about the time.

For each number of workers a set is made while SIGKILLs hit workers at random moments, spread over the whole run; each is started again.
Two workers are stopped for longer than their leases live, and go on (split brains); clocks are wrong by up to ten minutes; the last worker
sees the folder through `stale_view.StaleView`. Equal means: every image is there once, in its place; no temporary file and no lease is
left; the digest is that of a set that one process made undisturbed; and the same command again writes nothing. `ours` is images a second
of all workers, `other` those of the one undisturbed process. That process is also measured at sets of a thousand images and more, each
ten times as large as the one before: peak memory, and processor time an image, of making and of finishing.

`publish_vs_plain_tar` is the time of a loop that only writes tars of the same members and flushes them to the disk, over that of the shard
writer, an image each: checksums, index, band statistics and first-writer-wins publishing are what it does more. `…_in_memory` is the same
where there is no disk to wait for. `…_unflushed` lets the plain loop go before its bytes are on the disk. Equal means: the tars hold the
same bytes.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rounds import finish, resident_mib, row
from stale_view import StaleView

from data_shards import durable
from data_shards.cube import Cube, CubeMeta
from data_shards.ledger import LEASE, Ledger, Units
from data_shards.manifest import Manifest, write_manifest
from data_shards.packing.units import RECORD, merged, read_unit, write_unit
from data_shards.packing.verify import verify
from data_shards.reading.dataset import Dataset
from launch.work import work

STILL_S = 3.0  # of a lease in this benchmark
LATE_S = 2.0
MEMORY = Path("/dev/shm")


@functools.cache
def _pattern(shape: tuple[int, int, int]) -> tuple[np.ndarray, tuple[float, ...]]:
    return np.arange(np.prod(shape), dtype=np.int64).reshape(shape) * 40503, tuple(500.0 + 20 * c for c in range(shape[0]))


def toy(i: int, shape: tuple[int, int, int] = (2, 8, 8)) -> Cube:
    """Image i, a function of its number."""
    pattern_CHW, wavelengths_nm = _pattern(shape)
    data_CHW = ((pattern_CHW + i * 7919) & 0xFFF).astype(np.uint16)
    data_CHW.flat[:2] = i & 0xFFF, i >> 12  # no two are alike
    return Cube(data_CHW=data_CHW, meta=CubeMeta(key=f"{i:09d}", wavelengths_nm=wavelengths_nm, scale=1 / 4095, subject_id="synthetic"))


class Toys(Units):
    """A set of toy images in units, as a synthetic set is one."""

    def __init__(self, out: Path, images: int, shard: int) -> None:
        self.out, self.images, self.shard = out, images, shard
        self.names = [f"synthetic-{number:06d}" for number in range(-(-images // shard))]

    def published(self, number: int) -> bool:
        return read_unit(self.out / f"{self.names[number]}.tar") is not None

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


def one_worker(args: argparse.Namespace) -> Manifest:
    """This process as a worker."""
    args.work.mkdir(exist_ok=True)
    units, (k, n) = Toys(args.work, args.images, args.shard), args.place
    work(units, Ledger(args.work, still_s=STILL_S, beat_s=STILL_S / 10), place=(k, n), poll_s=0.2)
    return units.finish()


def deceived(args: argparse.Namespace) -> None:
    """The same with a wrong clock and, where it is asked for, a stale view."""
    with StaleView(args.work, args.late):
        real_time = time.time
        time.time = lambda: real_time() + args.skew
        one_worker(args)


def measured(args: argparse.Namespace) -> None:
    """One undisturbed worker: what it took, as JSON."""

    def cpu_s() -> float:
        return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])

    args.work.mkdir()
    units, began_s, used_s = Toys(args.work, args.images, args.shard), time.perf_counter(), cpu_s()
    work(units, Ledger(args.work))
    made_s = cpu_s()
    units.finish()
    found = {"wall_s": time.perf_counter() - began_s, "make_s": made_s - used_s, "finish_s": cpu_s() - made_s}
    print(json.dumps({**found, "peak_mib": resident_mib("VmHWM"), "digest": Dataset(args.work).digest}))


def started(args: argparse.Namespace, folder: Path, *words: Any, **how: Any) -> subprocess.Popen:
    words = ("--work", folder, "--images", args.images, "--shard", args.shard, *words)
    return subprocess.Popen([sys.executable, __file__, *map(str, words)], **how)


def alone(folder: Path, args: argparse.Namespace, images: int) -> dict[str, Any]:
    """What a set of so many images takes one process of its own."""
    process = started(argparse.Namespace(images=images, shard=args.shard), folder, "--measured", stdout=subprocess.PIPE, text=True)
    said = process.communicate()[0]
    assert process.returncode == 0
    found = json.loads(said)
    line = f"{images:9} images alone: {images / found['wall_s']:6.0f}/s, {1e6 * found['make_s'] / images:6.0f} CPU us an image"
    print(f"{line} and {1e6 * found['finish_s'] / images:5.1f} to finish, {found['peak_mib']:5.0f} MiB at most", flush=True)
    return {**found, "images": images}


def growth_rows(sizes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the largest set takes beside the smallest: flat is a ratio of 1."""
    rows, small, large = [], sizes[0], sizes[-1]
    for case, unit, of in (
        ("memory", "MiB", lambda found: found["peak_mib"]),
        ("make_cpu", "us/image", lambda found: 1e6 * found["make_s"] / found["images"]),
        ("finish_cpu", "us/image", lambda found: 1e6 * found["finish_s"] / found["images"]),
    ):
        values = {str(found["images"]): of(found) for found in sizes}
        ratio = of(small) / of(large)
        name = f"{case}_of_{large['images']}_vs_{small['images']}"
        rows.append({"case": name, "ours": of(large), "other": of(small), "unit": unit, "ratio": ratio, "equal": True, "sizes": values})
    return rows


class Workers:
    """Processes on one set, and what is done to them: each fault at a random share of the way, which the records that are there tell."""

    def __init__(self, folder: Path, args: argparse.Namespace, count: int) -> None:
        self.folder, self.args, self.count, self.chance = folder, args, count, random.Random(count)
        self.units = -(-args.images // args.shard)
        self.kills = sorted(self.chance.uniform(0, self.units - 1) for _ in range(args.kills))
        self.stops = sorted(self.chance.uniform(0, self.units / 2) for _ in range(2 if count > 1 else 0))
        self.resume_at: dict[int, float] = {}
        self.running = [self._started(k) for k in range(count)]

    def _started(self, k: int) -> subprocess.Popen:
        skew_s, late_s = self.chance.uniform(-600, 600), LATE_S if k == self.count - 1 else 0.0
        return started(self.args, self.folder, "--place", k, self.count, "--skew", skew_s, "--late", late_s)

    def end(self) -> tuple[int, int]:
        """Wait until all have ended well, with faults on the way; how many were killed, and stopped."""
        kills = stops = 0
        while any(process.poll() is None for process in self.running):
            time.sleep(self.chance.uniform(0, 0.1))
            made = (
                sum(entry.name.endswith(RECORD) and entry.name[0] != "." for entry in os.scandir(self.folder))
                if self.folder.exists()
                else 0
            )
            for k in [k for k, at in self.resume_at.items() if time.monotonic() > at]:
                self.running[k].send_signal(signal.SIGCONT)
                del self.resume_at[k]
            live = [k for k, process in enumerate(self.running) if process.poll() is None and k not in self.resume_at]
            if live and stops < len(self.stops) and made > self.stops[stops]:
                k = self.chance.choice(live)
                self.running[k].send_signal(signal.SIGSTOP)
                self.resume_at[k], stops = time.monotonic() + 2 * STILL_S, stops + 1
            elif live and kills < len(self.kills) and made >= self.kills[kills]:
                k = self.chance.choice(live)
                self.running[k].kill()
                self.running[k].wait()
                self.running[k] = self._started(k)
                kills += 1
        assert {process.wait() for process in self.running} == {0}
        return kills, stops


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
    kills, stops = Workers(folder, args, count).end()
    per_s = args.images / (time.perf_counter() - began)
    faults, before = faults_of(folder, args.images, digest), state(folder)
    one_worker(argparse.Namespace(**{**vars(args), "work": folder}))
    faults += [] if state(folder) == before else ["the same command again wrote something"]
    faults += [] if kills == args.kills else [f"{kills} of {args.kills} were killed"]
    print(
        f"{count:3} workers, {kills} killed, {stops} stopped: {per_s:8.0f} images/s; {'; '.join(faults) or 'every image once'}", flush=True
    )
    found = {"case": f"{count}_workers_{kills}_kills", "ours": per_s, "other": alone_per_s, "unit": "images/s"}
    return {**found, "ratio": per_s / alone_per_s, "equal": not faults}


def publish_row(folder: Path, case: str, shape: tuple[int, int, int], count: int, rounds: int, *, flushed: bool) -> dict[str, Any]:
    """The shard writer beside a plain loop."""
    ours, plain, made = folder / "ours.tar", folder / "plain.tar", [toy(i, shape) for i in range(count)]

    def publish() -> Path:
        for path in folder.glob("ours.*"):
            path.unlink()
        write_unit(ours, "synthetic", iter(made))
        return ours

    def loop() -> Path:
        with open(plain, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for cube in made:
                    for member, content in plain_members(cube):
                        info = tarfile.TarInfo(f"{cube.meta.key}.{member}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
            if flushed:
                file.flush()
                os.fsync(file.fileno())
        return plain

    return row(case, publish, loop, lambda a, b: a.read_bytes() == b.read_bytes(), rounds)


def plain_members(cube: Cube) -> Iterator[tuple[str, bytes]]:
    """What anybody would put into a tar."""
    fields = {**asdict(cube.meta), "shape": cube.data_CHW.shape, "dtype": cube.data_CHW.dtype.name}
    yield "json", json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    yield "cube.raw", cube.data_CHW.tobytes()


def publish_rows(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for size, shape, count in (("", (16, 96, 96), 256), ("_672", (16, 672, 672), 16)):
        count = count if args.images > 100_000 else count // 4
        for kind, flushed in (("", True), ("_unflushed", False)):
            rows.append(publish_row(folder, f"publish_vs_plain_tar{size}{kind}", shape, count, args.rounds, flushed=flushed))
        if MEMORY.is_dir():
            with tempfile.TemporaryDirectory(dir=MEMORY) as memory:
                case = f"publish_vs_plain_tar{size}_in_memory"
                rows.append(publish_row(Path(memory), case, shape, count, args.rounds, flushed=False))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 images and 10 kills, within 50 s on two cores")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--shard", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=500, help="for each number of workers")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 3, 8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=int, nargs=2, default=(0, 1), help=argparse.SUPPRESS)
    parser.add_argument("--skew", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--late", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--measured", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        measured(args) if args.measured else deceived(args)
        return
    if args.quick:
        args.images, args.shard, args.kills, args.workers = 20_000, 250, 10, [3]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "plain").mkdir()
        rows = publish_rows(folder / "plain", args)
        sizes = [alone(folder / f"alone-{images}", args, images) for images in (1000, 10_000, 100_000) if images < args.images]
        sizes.append(alone(folder / "alone", args, args.images))
        rows += growth_rows(sizes)
        alone_per_s, digest = args.images / sizes[-1]["wall_s"], sizes[-1]["digest"]
        rows += [disturbed(folder / f"of-{count}", args, count, alone_per_s, digest) for count in args.workers]
    finish("bulk", rows)


if __name__ == "__main__":
    main()
