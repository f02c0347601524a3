"""What a set of 10⁶ cubes of 672×672×16 costs, and one of 10⁸: terms that are measured here, multiplied out. For docs/bulk_costs.md.

Measured: bytes a cube in each codec, as pixels (phantoms) and as codes (index maps of a trained run, set side by side to the 84×84 of a
672×672 cube at a compression of 8); files, and calls that ask a file system's server, a shard; processor time of publishing and of
`data verify` a cube; time and memory of the manifest a shard. Not measured here: how many cubes a second a GPU makes. `--rate` is yours.
Needs strace for the calls, and --run with a finished run for the codes; what is missing is named in the last line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from bulk import toy
from bulk_calls import calls, totals
from rounds import resident_mib

from data_shards import durable
from data_shards.cube import Cube, CubeMeta
from data_shards.ledger import BEAT_S
from data_shards.manifest import NAME, write_manifest
from data_shards.packing.units import merged, read_unit, record_path, write_unit
from data_shards.packing.verify import verify
from data_shards.packing.writing import write_shard
from data_shards.phantom.eyes import phantom_cube
from data_shards.phantom.persons import PhantomConfig
from data_shards.shards.codecs import Encoding
from data_shards.shards.index import index_path
from data_shards.shards.payload import encode
from launch.work import POLL_S

CODE_SIDE = 84
ENCODINGS = [Encoding("blosc2"), Encoding("pcodec"), Encoding("near", max_error=2)]


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Attributes:
    cube_bytes: of a shard, a cube, stored raw.
    share: of that, by encoding.
    publish_s, verify_s: processor time a cube, on one core.
    """

    cube_bytes: float
    share: dict[str, float]
    publish_s: float
    verify_s: float


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Attributes:
    index_bytes: an image, in the index of its shard.
    record_bytes, manifest_bytes: a shard, in its record and in the manifest.
    finish_s, finish_bytes: a shard, while the manifest is made.
    """

    index_bytes: float
    record_bytes: float
    manifest_bytes: float
    finish_s: float
    finish_bytes: float


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Attributes:
    bits: entropy of one index, by how often each code is used.
    payload_bytes: of a map of 84×84 in pcodec.
    cube_bytes: of a shard, a cube.
    image_s: processor time of an image of the run, on one thread.
    shape: of those, (C, H, W).
    """

    bits: float
    payload_bytes: float
    cube_bytes: float
    image_s: float
    shape: tuple[int, ...]


def pixels(folder: Path, cubes: int) -> Pixels:
    """A shard of phantoms of full size."""
    config = PhantomConfig(size=672)
    made = [phantom_cube(config, subject=subject, eye="OD", visit=0) for subject in range(cubes)]
    made = [replace(cube, labels_HW=None, meta=replace(cube.meta, key=f"{i:09d}", notes={"image": i})) for i, cube in enumerate(made)]
    shard = folder / "synthetic-000000.tar"
    publish_s = processor_s(lambda: write_unit(shard, "synthetic", iter(made))) / cubes
    unit = read_unit(shard)
    write_manifest(folder, merged([unit], ["synthetic"], {}))
    verify_s = processor_s(lambda: list(verify(folder))) / cubes
    raw = made[0].data_CHW.nbytes
    share = {name_of(how): float(np.mean([len(encode(cube.data_CHW, how)) for cube in made])) / raw for how in ENCODINGS}
    return Pixels(cube_bytes=unit.entry.bytes / cubes, share=share, publish_s=publish_s, verify_s=verify_s)


def name_of(how: Encoding) -> str:
    return f"{how.codec}, to {how.max_error} counts" if how.max_error else how.codec


def processor_s(run: object) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def shards(folder: Path, counts: tuple[int, int]) -> Shards:
    """What grows with images and with shards, by two sets of each: their difference is free of what does not grow."""
    few, many = (folder / f"of-{n}.tar" for n in (10, 210))
    for shard, n in ((few, 10), (many, 210)):
        write_unit(shard, "synthetic", (toy(i, (16, 8, 8)) for i in range(n)))
    index_bytes = (index_path(many).stat().st_size - index_path(few).stat().st_size) / 200
    sizes, seconds, peaks = zip(*(finished(folder / f"shards-{n}", many, n) for n in counts), strict=True)
    more = counts[1] - counts[0]
    return Shards(
        index_bytes=index_bytes,
        record_bytes=record_path(many).stat().st_size,
        manifest_bytes=(sizes[1] - sizes[0]) / more,
        finish_s=(seconds[1] - seconds[0]) / more,
        finish_bytes=(peaks[1] - peaks[0]) / more,
    )


def finished(folder: Path, shard: Path, count: int) -> tuple[int, float, int]:
    """Bytes of the manifest of a set of so many shards, processor time to make it, and memory for it, in a process of its own."""
    folder.mkdir()
    record = json.loads(record_path(shard).read_bytes())
    for number in range(count):
        one = folder / f"synthetic-{number:06d}.tar"
        one.hardlink_to(shard)
        index_path(one).hardlink_to(index_path(shard))
        record_path(one).write_bytes(durable.canonical_json({**record, "entry": {**record["entry"], "name": one.name}}))
    words = [sys.executable, __file__, "--finish", str(folder)]
    seconds, peak = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    return (folder / NAME).stat().st_size, float(seconds), int(peak)


def finish(folder: Path) -> None:
    """In that process: records to manifest, as a set is finished."""
    before_mib = resident_mib("VmRSS")

    def made() -> None:
        write_manifest(folder, merged([read_unit(path) for path in sorted(folder.glob("*.tar"))], ["synthetic"], {}))

    print(processor_s(made), int((resident_mib("VmHWM") - before_mib) * 2**20))


def codes(run: Path, folder: Path, images: int) -> Codes:
    """Index maps of the run's own images, and what a thread makes of them."""
    import torch

    from data_shards.reading.dataset import Dataset
    from launch.parse import parse_yaml
    from launch.run import Run
    from launch.stages.sample import SPLIT, generator_of
    from launch.tree import from_tree

    torch.set_num_threads(1)
    tree = parse_yaml((run / "run.yaml").read_text(), run / "run.yaml")
    of, whole = Run(from_tree({**tree, "run": str(run), "sample": {**tree["sample"], "gate": 0.0}})), Dataset(run / "synthetic")
    generator = generator_of(of)
    image_s = processor_s(lambda: list(generator.images(range(generator.batch)))) / generator.batch
    stored = torch.from_numpy(np.stack([whole.cube(SPLIT, i).data_CHW for i in range(min(images, whole.count(SPLIT)))]))
    fov_BHW = generator.autoencoder.fov_HW.expand(len(stored), -1, -1)
    index_BHW = generator.autoencoder.reconstruct(stored, fov_BHW)[1].numpy().astype(np.uint16)
    used_K = np.bincount(index_BHW.ravel()) / index_BHW.size
    bits = float(-(used_K[used_K > 0] * np.log2(used_K[used_K > 0])).sum())
    maps = list(maps_of(index_BHW))
    shard = folder / "codes-000000.tar"
    write_shard(shard, (code_cube(i, maps[i % len(maps)]) for i in range(500)), Encoding("pcodec"))  # an end of 10 kB weighs little
    payload_bytes = float(np.mean([len(encode(map_HW[None], Encoding("pcodec"))) for map_HW in maps]))
    return Codes(
        bits=bits, payload_bytes=payload_bytes, cube_bytes=shard.stat().st_size / 500, image_s=image_s, shape=tuple(stored.shape[1:])
    )


def maps_of(index_BHW: np.ndarray) -> Iterable[np.ndarray]:
    """Maps of the full size, of smaller ones side by side."""
    side = -(-CODE_SIDE // index_BHW.shape[1])
    for first in range(0, len(index_BHW) - side * side + 1, side * side):
        rows = [np.hstack(index_BHW[first + side * row :][:side]) for row in range(side)]
        yield np.vstack(rows)[:CODE_SIDE, :CODE_SIDE]


def code_cube(i: int, index_HW: np.ndarray) -> Cube:
    notes = {"image": i, "seed": 0, "batch": 16}
    meta = CubeMeta(key=f"{i:09d}", wavelengths_nm=(0.0,), scale=1.0, subject_id="synthetic", notes=notes)
    return Cube(data_CHW=index_HW[None], meta=meta)


def table(
    n: int, args: argparse.Namespace, pixel: Pixels, shard: Shards, asked: dict[str, Counter[str]] | None, code: Codes | None
) -> dict[str, str]:
    """The costs of n cubes, a line each."""
    rows = {f"GPU-hours at {rate:g} cubes/s a GPU": f"{n / rate / 3600:,.0f}" for rate in args.rate}
    rows["pixels, raw"] = size(n * pixel.cube_bytes)
    rows |= {f"pixels, {how}": size(n * pixel.cube_bytes * share) for how, share in pixel.share.items()}
    if code:
        rows["codes"] = size(n * code.cube_bytes)
    for what, each in (("pixels", args.shard), ("codes", args.code_shard)):
        number = -(-n // each)
        rows[f"{what}: files, in shards of {each:,}"] = f"{3 * number + 3:,}"
        rows[f"{what}: indices, records, manifest"] = size(n * shard.index_bytes + number * (shard.record_bytes + shard.manifest_bytes))
        rows[f"{what}: to finish: core-seconds, memory"] = f"{number * shard.finish_s:,.1f}, {size(number * shard.finish_bytes)}"
        if asked:
            changes, flushes, others = totals(asked["shard"])
            rows[f"{what}: names changed, flushes, other calls"] = ", ".join(f"{number * per:,.0f}" for per in (changes, flushes, others))
    rows["core-hours to publish pixels"] = f"{n * pixel.publish_s / 3600:,.0f}"
    rows["core-hours to verify pixels"] = f"{n * pixel.verify_s / 3600:,.0f}"
    return rows


def size(count: float) -> str:
    unit = next((unit for unit in ("TB", "GB", "MB") if count >= {"TB": 1e12, "GB": 1e9, "MB": 1e6}[unit]), "MB")
    return f"{count / {'TB': 1e12, 'GB': 1e9, 'MB': 1e6}[unit]:,.3g} {unit}" if count < 1e15 else f"{count / 1e12:,.0f} TB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cubes and shards")
    parser.add_argument("--run", type=Path, help="a finished run, for codes: read, and left as it is")
    parser.add_argument("--rate", type=float, nargs="+", default=[8.0, 5.0], help="cubes a second of a GPU; 8 and 5 are aims")
    parser.add_argument("--shard", type=int, default=1000, help="cubes a shard, as pixels")
    parser.add_argument("--code-shard", type=int, default=10_000, help="cubes a shard, as codes")
    parser.add_argument("--finish", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.finish:
        finish(args.finish)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("pixels", "shards", "codes"):
            (folder / name).mkdir()
        pixel = pixels(folder / "pixels", 2 if args.quick else 8)
        shard = shards(folder / "shards", (500, 2500) if args.quick else (1000, 10_000))
        asked = calls(folder / "calls")
        code = codes(args.run, folder / "codes", 64 if args.quick else 192) if args.run else None
    print(f"{pixel}\n{shard}\n{code}")
    for what, found in (asked or {}).items():
        print(f"calls, {what}: " + ", ".join(f"{kind} {count:.3g}" for kind, count in sorted(found.items())))
    print(f"A process that waits looks at each unfinished shard every {POLL_S:g} s, and one that works counts every {BEAT_S:g} s.\n")
    million, hundred = (table(n, args, pixel, shard, asked, code) for n in (10**6, 10**8))
    print("| | 10⁶ cubes | 10⁸ cubes |\n|---|---|---|")
    print("\n".join(f"| {what} | {value} | {hundred[what]} |" for what, value in million.items()))
    missing = {"codes": "no --run"} if code is None else {}
    missing |= {"calls": "no strace, or it may not look"} if asked is None else {}
    print(json.dumps({"benchmark": "bulk_costs", "rows": [], "not_measured": missing}))


if __name__ == "__main__":
    main()
