"""Whether the audit's spaces know copies again: training images, changed as a copyist would, among the training set and further people.

Phantoms, kept in FOLDER with the head that is trained on them. A planted copy counts as found where it lies nearer to the nearest image
searched than all but 1 % of people held out do (none of them where they are fewer than 200), mirrored queries included, as in the audit.

Not a benchmark of time: `ours` is the share found in the space `copies`, `other` the larger of the shares in `pooled` and `contrast`, and
`equal` says whether what was wanted is reached.

Legend: C band, H W pixels, N image, D dimension.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rounds import finish
from scipy import ndimage

from data_shards.cube import Cube
from data_shards.packing.pack import write_dataset
from data_shards.phantom.eyes import EYES, phantom_cube
from data_shards.phantom.persons import PhantomConfig
from data_shards.reading.dataset import Dataset
from launch.cli.display import Terminal
from launch.run import Run
from launch.stages import STAGES
from launch.stages.training import train
from launch.tree import load
from ldm.authenticity.descriptors import Space, Views, spaces
from ldm.authenticity.near import Near, near
from ldm.evaluation.sets import common_fov

RATE = 0.01
SPACES = ("copies", "pooled", "contrast")


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is done to a copy.

    Attributes:
        of: the counts of an image and a generator of its own → counts.
        wanted: share that has to be found.
    """

    of: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    wanted: float


def resampled(x_CHW: np.ndarray, matrix_22: np.ndarray, shift_2: np.ndarray) -> np.ndarray:
    """By cubic splines, black beyond the border: another way than that by which the head was trained."""
    sides_2 = np.array(x_CHW.shape[1:])
    middle_2 = (sides_2 - 1) / 2
    offset_2 = middle_2 - matrix_22 @ middle_2 + shift_2 * sides_2
    return np.stack([ndimage.affine_transform(x_HW, matrix_22, offset_2, order=3) for x_HW in x_CHW])


def turned(x_CHW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """By any angle."""
    cos, sin = np.cos(angle := rng.uniform(0, 2 * np.pi)), np.sin(angle)
    return resampled(x_CHW, np.array([[cos, -sin], [sin, cos]]), np.zeros(2))


def noisy(x_CHW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of a deviation of 5 % of each band's mean."""
    return x_CHW + 0.05 * x_CHW.mean((1, 2), keepdims=True) * rng.normal(size=x_CHW.shape)


CHANGES = {
    "exact": Change(of=lambda x_CHW, rng: x_CHW, wanted=1.0),
    "noisy": Change(of=noisy, wanted=1.0),
    "of 8 bits": Change(of=lambda x_CHW, rng: np.round(x_CHW / 16) * 16, wanted=1.0),
    "blurred": Change(of=lambda x_CHW, rng: ndimage.gaussian_filter(x_CHW, (0, 0.6, 0.6)), wanted=1.0),
    "gain": Change(of=lambda x_CHW, rng: x_CHW * rng.choice([0.9, 1.1]), wanted=1.0),
    "left to right": Change(of=lambda x_CHW, rng: x_CHW[:, :, ::-1], wanted=0.99),
    "upside down": Change(of=lambda x_CHW, rng: x_CHW[:, ::-1], wanted=0.99),
    "shifted": Change(of=lambda x_CHW, rng: resampled(x_CHW, np.eye(2), rng.uniform(-0.08, 0.08, 2)), wanted=0.99),
    "turned": Change(of=turned, wanted=0.95),
    "cut to 80 %": Change(of=lambda x_CHW, rng: resampled(x_CHW, 0.8 * np.eye(2), rng.uniform(-0.1, 0.1, 2)), wanted=0.95),
}


def phantoms(config: PhantomConfig, people: range, *, eyes: int = 1, visits: int = 1) -> Iterator[Cube]:
    for who in people:
        for eye in EYES[:eyes]:
            yield from (phantom_cube(config, subject=who, eye=eye, visit=visit) for visit in range(visits))


def real_set(folder: Path, config: PhantomConfig, *, people: int, held: int, more: int) -> Dataset:
    """Training people with both eyes and two visits, people held out, and further people who are searched too; made once."""
    if not (folder / "dataset.json").exists():
        splits = {
            "train": phantoms(config, range(people), eyes=2, visits=2),
            "val": phantoms(config, range(10_000, 10_000 + held)),
            "test": phantoms(config, range(20_000, 20_000 + more)),
        }
        write_dataset(folder, splits, source={"phantom": config.record()})
    return Dataset(folder)


def head(folder: Path, real: Dataset, settings: list[str]) -> tuple[Path, float]:
    """A copy-detection head as the demo trains it, and the processor seconds that it took."""
    words = [f"run={folder}", f"data.dataset={real.path}", "copies.engine.tracker=none", *settings]
    began, run = time.process_time(), Run(load("demo", words))
    train(STAGES["copies"], run, Terminal())
    return run.copies, time.process_time() - began


def views_of(space: Space, counts_NCHW: np.ndarray, real: Dataset, fov_HW: np.ndarray) -> Views:
    """Descriptors of images that are stored as such counts."""
    batches = np.array_split(counts_NCHW, max(1, len(counts_NCHW) // 32))
    seen = (torch.from_numpy((batch * real.scale + real.offset) * fov_HW).float() for batch in batches)
    plain, mirrored = zip(*(space.views(x_BCHW) for x_BCHW in seen), strict=True)
    return np.concatenate(plain), np.concatenate(mirrored)


def counts_of(real: Dataset, split: str) -> np.ndarray:
    return np.stack([cube.data_CHW for cube in real.cubes(split)]).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the phantoms and the head; what is there is used again")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller images, within 50 s: what is wanted is not reached")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--people", type=int, nargs=3, default=(48, 200, 300), metavar=("TRAIN", "HELD", "MORE"))
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the configuration, as copies.model.dimension=12"
    )
    args = parser.parse_args()
    size, people = (32, (12, 20, 20)) if args.quick else (args.size, args.people)
    real = real_set(args.folder / "real", PhantomConfig(size=size, seed=19), **dict(zip(("people", "held", "more"), people, strict=True)))
    trained, seconds = head(args.folder / "run", real, args.set)
    fov_HW, rows = common_fov(real, "train"), []
    train_NCHW, held_NCHW, more_NCHW = (counts_of(real, split) for split in ("train", "val", "test"))
    searched = {"images": len(train_NCHW) + len(more_NCHW), "held out": len(held_NCHW), "cpu of the head": round(seconds, 1)}
    print(", ".join(f"{name} {value}" for name, value in searched.items()))
    copies = {
        name: np.stack([change.of(x_CHW, np.random.default_rng((number, i))) for i, x_CHW in enumerate(train_NCHW)]).round().clip(0, 4095)
        for number, (name, change) in enumerate(CHANGES.items())
    }
    shares: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in CHANGES}
    for of, space in spaces(SPACES, real, learned=None, copies=trained, device="cpu").items():
        reference_ND = np.concatenate([views_of(space, x_NCHW, real, fov_HW)[0] for x_NCHW in (train_NCHW, more_NCHW)])

        def nearest(x_NCHW: np.ndarray, space: Space = space, reference_ND: np.ndarray = reference_ND) -> Near:
            return near(views_of(space, x_NCHW, real, fov_HW), reference_ND, np.arange(len(reference_ND)), "auto", k=1)

        held_N = np.sort(nearest(held_NCHW).distance_N)
        threshold = held_N[max(0, int(RATE * (len(held_N) + 1)) - 1)]
        for name, x_NCHW in copies.items():
            found = nearest(x_NCHW)
            right_N = found.index_N == np.arange(len(x_NCHW))
            shares[name][of] = float((found.distance_N < threshold).mean()), float(right_N.mean())
    print("| copies | wanted | " + " | ".join(f"{of}: found, nearest is the original" for of in SPACES) + " |")
    for name, of_spaces in shares.items():
        cells = " | ".join(f"{found:.3f}, {right:.3f}" for found, right in of_spaces.values())
        print(f"| {name} | {CHANGES[name].wanted:g} | {cells} |", flush=True)
        ours, other = of_spaces["copies"][0], max(of_spaces[of][0] for of in SPACES[1:])
        reached = ours >= CHANGES[name].wanted
        rows.append({"case": name, "ours": ours, "other": other, "unit": "share", "ratio": ours / max(other, 1e-3), "equal": reached})
    finish("copies", rows)


if __name__ == "__main__":
    main()
