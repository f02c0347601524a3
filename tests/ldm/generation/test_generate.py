"""A set that cannot be made is refused before anything is written; one that is made may grow. The real networks: tests/launch."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from data_shards.errors import InputError
from data_shards.manifest import Manifest
from data_shards.packing.verify import verify
from data_shards.reading.dataset import Dataset
from ldm.generation import generate, images
from ldm.generation.generate import generate_set, superseded
from ldm.generation.images import Generator
from ldm.models.config import ObjectiveConfig, SamplerConfig

PLAN = {"count": 4, "shard": 2, "seed": 0, "sampler": SamplerConfig(steps=2), "batch": 2}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count 0"),
        ({"shard": 0}, "shard 0"),
        ({"batch": 0}, "batch 0"),
        ({"sampler": SamplerConfig(name="ddim")}, "does not solve objective 'flow'"),
        ({"autoencoder": "another"}, "latents of another autoencoder"),
    ],
)
def test_what_cannot_be_made_leaves_nothing(tmp_path: Path, wrong: dict, message: str) -> None:
    options = {**PLAN, **wrong}
    autoencoder = SimpleNamespace(digest=options.pop("autoencoder", "a"), data={"digest": "d"})
    denoiser = SimpleNamespace(digest="n", autoencoder="a", objective=ObjectiveConfig(target="flow"))
    with pytest.raises(InputError, match=message):
        how = {key: options.pop(key) for key in ("seed", "sampler", "batch")}
        generate_set(Generator(autoencoder=autoencoder, denoiser=denoiser, **how), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


class Painter:
    """Stands for both networks: image i is a function of i, and of the batch, as rounding on a GPU is."""

    fov_HW = torch.ones(8, 8, dtype=torch.bool)
    data: ClassVar = {"digest": "d", "wavelengths_nm": (500.0, 600.0), "scale": 1 / 4095, "offset": 0.0}
    digest, autoencoder, objective = "a", "a", ObjectiveConfig(target="flow")

    def decode(self, ids_B: torch.Tensor, *, quantise: bool) -> torch.Tensor:
        ramp_HW = torch.arange(64).reshape(8, 8)
        return (ids_B[:, None, None, None] * 100 + ramp_HW + torch.arange(2)[:, None, None] + len(ids_B)).to(torch.uint16)


def painter(batch: int, seed: int = 0) -> Generator:
    return Generator(autoencoder=Painter(), denoiser=Painter(), seed=seed, sampler=PLAN["sampler"], batch=batch)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Manifest | None]:
    """generate_set with a Painter, in shards of four, into a folder by name."""
    monkeypatch.setattr(images, "latents_of", lambda _, ids, **how: torch.from_numpy(ids))

    def make(name: str, count: int, batch: int = 4, *, shard: int = 4, seed: int = 0, watch: Callable = iter) -> Manifest | None:
        return generate_set(painter(batch, seed), tmp_path / name, count=count, shard=shard, watch=watch)

    return make


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("steps", [(8, 16), (6, 8), (6, 7, 9, 16), (3, 16), (16, 16)])
def test_a_grown_set_is_byte_for_byte_that_made_at_once_and_whole_shards_are_not_made_again(
    made: Callable, tmp_path: Path, steps: tuple[int, ...]
) -> None:
    stamps: dict[str, int] = {}
    for count in steps:
        made("grown", count)
        now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "grown").glob("synthetic-*")}
        assert stamps.items() <= now.items()
        stamps = now
        assert [cube.meta.notes["image"] for cube in Dataset(tmp_path / "grown").cubes("synthetic")] == list(range(count))
        assert not [fault for _, faults in verify(tmp_path / "grown") for fault in faults]
    made("once", steps[-1])
    grown, once = files(tmp_path / "grown"), files(tmp_path / "once")
    assert once.items() <= grown.items()
    assert {name for name in grown if name not in once and name.endswith(".tar")} == set(superseded(tmp_path / "grown"))


def test_who_reads_the_smaller_set_while_it_grows_sees_no_damage(made: Callable, tmp_path: Path) -> None:
    made("set", 6)
    smaller = Dataset(tmp_path / "set")

    def look(numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            yield number
            assert not [fault for _, faults in verify(tmp_path / "set") for fault in faults]
            assert Dataset(tmp_path / "set").count("synthetic") == 6

    made("set", 16, watch=look)
    assert [cube.meta.notes["image"] for cube in smaller.cubes("synthetic")] == list(range(6))


def test_a_set_killed_while_it_grew_goes_on(made: Callable, tmp_path: Path) -> None:
    def killed(numbers: Iterable[int]) -> Iterator[int]:
        yield next(iter(numbers))
        raise KeyboardInterrupt

    made("set", 6)
    with pytest.raises(KeyboardInterrupt):
        made("set", 16, watch=killed)
    assert Dataset(tmp_path / "set").count("synthetic") == 6
    assert made("set", 16) == made("once", 16)
    assert files(tmp_path / "set")["dataset.json"] == files(tmp_path / "once")["dataset.json"]


@pytest.mark.parametrize("left", [("tar",), ("tar", "index"), ("index", "unit"), ("unit",), ("tar", "unit")])
def test_whatever_of_a_shard_a_kill_left_it_is_completed_to_the_same(made: Callable, tmp_path: Path, left: tuple[str, ...]) -> None:
    made("once", 16)
    made("set", 16)
    for suffix in {"tar", "index", "unit"} - {*left}:
        (tmp_path / "set" / f"synthetic-000001.{suffix}").unlink()
    (tmp_path / "set" / "dataset.json").unlink()
    made("set", 16)
    assert files(tmp_path / "set") == files(tmp_path / "once")


def test_a_set_is_finished_without_opening_its_shards(made: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices of a large set are gigabytes; the records say all that is needed."""
    made("set", 16)
    before = files(tmp_path / "set")
    (tmp_path / "set" / "dataset.json").unlink()
    monkeypatch.setattr("data_shards.reading.reader.open_index", None)
    monkeypatch.setattr(generate, "open_index", None)
    generate_set(painter(4), tmp_path / "set", count=16, shard=4)
    assert files(tmp_path / "set") == before


def test_records_of_an_earlier_version_leave_the_batch_to_the_shards(made: Callable, tmp_path: Path) -> None:
    made("set", 16)
    before = (tmp_path / "set" / "dataset.json").read_bytes()
    (tmp_path / "set" / "dataset.json").unlink()
    for record in (tmp_path / "set").glob("*.unit"):
        fields = json.loads(record.read_bytes())
        assert fields.pop("notes")["batch"]
        record.write_text(json.dumps(fields))
    made("set", 16)
    assert (tmp_path / "set" / "dataset.json").read_bytes() == before


def test_another_writer_s_shard_stands_and_its_sums_count(made: Callable, tmp_path: Path) -> None:
    """Two processes make one shard, and their machines round differently."""
    made("other", 4, batch=2)

    units = generate.SyntheticSet(painter(4), tmp_path / "set", count=4, shard=4)
    inner = Generator.images

    def slow(*words: object) -> Iterator[object]:
        yield from inner(*words)
        for suffix in ("tar", "index"):
            (tmp_path / "set" / f"synthetic-000000.{suffix}").write_bytes((tmp_path / "other" / f"synthetic-000000.{suffix}").read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generator, "images", slow)
        units.make(0)
    manifest, other = units.finish(), Dataset(tmp_path / "other").manifest
    assert (manifest.digest, manifest.stats) == (other.digest, other.stats)
    assert not [fault for _, faults in verify(tmp_path / "set") for fault in faults]


def test_a_task_that_was_asked_for_fewer_does_not_take_a_larger_set_back(made: Callable, tmp_path: Path) -> None:
    """Two jobs of different counts at once: the smaller ends last."""

    def overtaken(numbers: Iterable[int]) -> Iterator[int]:
        yield from numbers
        made("set", 16)

    with pytest.raises(InputError, match=r"sample\.count=8, and a set of 16 images stands"):
        made("set", 8, watch=overtaken)
    assert Dataset(tmp_path / "set").count("synthetic") == 16


def test_two_tasks_of_different_counts_that_finish_at_one_moment_leave_the_larger_set(
    made: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger = threading.Thread(target=made, args=("set", 16))
    write = generate.write_manifest

    def overtaken(folder: Path, manifest: Manifest) -> None:
        if manifest.splits["synthetic"]["count"] == 8:
            larger.start()
            larger.join(2)
        write(folder, manifest)

    monkeypatch.setattr(generate, "write_manifest", overtaken)
    made("set", 8)
    larger.join()
    assert Dataset(tmp_path / "set").count("synthetic") == 16 and not list((tmp_path / "set").glob(".*"))


def test_an_image_is_made_in_a_batch_of_one_size_whichever_others_are_made_with_it(made: Callable, tmp_path: Path) -> None:
    """Ten to a shard, four at once: the last four are two, filled up. By number alone it is the same."""
    made("set", 13, batch=4, shard=10)
    cubes = list(Dataset(tmp_path / "set").cubes("synthetic"))
    assert {cube.meta.notes["batch"] for cube in cubes} == {4} and len(cubes) == 13
    for cube in painter(4).images([12, 3, 7, 0]):
        assert np.array_equal(cube.data_CHW, cubes[cube.meta.notes["image"]].data_CHW)


def test_the_batch_may_change_while_a_set_is_unfinished_and_stands_in_each_shard(made: Callable, tmp_path: Path) -> None:
    made("set", 8, batch=4)
    grown = made("set", 16, batch=2)
    assert grown.source["sample"]["batch"] == [2, 4]
    notes = [cube.meta.notes["batch"] for cube in Dataset(tmp_path / "set").cubes("synthetic")]
    assert notes == [4] * 8 + [2] * 8
    before = files(tmp_path / "set")
    assert made("set", 16, batch=1) == grown and files(tmp_path / "set") == before  # finished: nothing is made


def test_a_smaller_set_and_another_seed_are_refused_and_what_stands_stays(made: Callable, tmp_path: Path) -> None:
    made("set", 16)
    before = files(tmp_path / "set")
    with pytest.raises(InputError, match=r"sample\.count=8, and a set of 16") as refused:
        made("set", 8)
    assert "sample.count=16" in refused.value.mend
    with pytest.raises(InputError, match="another request"):
        made("set", 16, seed=1)
    assert files(tmp_path / "set") == before


def test_a_set_begun_by_an_earlier_version_grows_by_whole_shards_and_its_short_one_is_refused(made: Callable, tmp_path: Path) -> None:
    """Then the count and the batch were part of the request, and a last short shard had the name of a whole one."""
    made("set", 8)
    request = tmp_path / "set" / "request.json"
    stated = json.loads(request.read_bytes())
    assert (stated.pop("noise"), stated.pop("gate")) == ("threefry2x32-20", None)
    request.write_bytes(json.dumps({**stated, "count": 8, "batch": 4}).encode())
    grown = made("set", 12)
    assert grown.splits["synthetic"]["count"] == 12 and (grown.source["sample"]["noise"], grown.source["sample"]["gate"]) == (
        "mt19937",
        None,
    )
    made("short", 6)
    for suffix in ("tar", "index", "unit"):
        (tmp_path / "short" / f"synthetic-000001.first2.{suffix}").rename(tmp_path / "short" / f"synthetic-000001.{suffix}")
    (tmp_path / "short" / "dataset.json").unlink()
    before = files(tmp_path / "short")
    with pytest.raises(InputError, match="2 images in a shard that shall hold 4"):
        made("short", 16)
    assert files(tmp_path / "short") == before, "refused after hours of work"
