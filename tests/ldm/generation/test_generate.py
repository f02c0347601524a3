"""A set that cannot be made is refused before anything is written; one that is made may grow. The real networks: tests/launch."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
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
from ldm.generation import generate, images, standing
from ldm.generation.generate import generate_set, superseded
from ldm.generation.images import Generator
from ldm.generation.standing import request_of
from ldm.models.config import InferenceConfig, ObjectiveConfig, SamplerConfig
from ldm.models.inference import FP32, stated

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
    autoencoder = SimpleNamespace(
        digest=options.pop("autoencoder", "a"),
        data={"digest": "d"},
        inference=FP32,
        fov_HW=torch.ones(8, 8, dtype=torch.bool),
        taught_by=None,
    )
    denoiser = SimpleNamespace(digest="n", autoencoder="a", objective=ObjectiveConfig(target="flow"), inference=FP32, taught_by=None)
    with pytest.raises(InputError, match=message):
        how = {key: options.pop(key) for key in ("seed", "sampler", "batch")}
        generate_set(Generator(autoencoder=autoencoder, denoiser=denoiser, **how), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


class Painter:
    """Stands for both networks: image i is a function of i, and of the batch, as rounding on a GPU is."""

    fov_HW, shown_HW = torch.ones(8, 8, dtype=torch.bool), np.ones((8, 8), bool)
    data: ClassVar = {"digest": "d", "wavelengths_nm": (500.0, 600.0), "scale": 1 / 4095, "offset": 0.0}
    digest, autoencoder, objective, inference, taught_by = "a", "a", ObjectiveConfig(target="flow"), FP32, None
    normaliser = SimpleNamespace(mean_C11=torch.zeros(1))

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
    monkeypatch.setattr(standing, "open_index", None)
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


@pytest.mark.parametrize("other", [{"shift": 3.0}, {"sigma_min": 0.5}, {"cache_every": 2}])
def test_a_set_of_other_times_or_of_cached_features_is_another_set(made: Callable, tmp_path: Path, other: dict) -> None:
    assert made("set", 4).source["sample"].items() >= {"shift": 1.0, "sigma_min": 0.001, "cache_every": 1}.items()
    (tmp_path / "set" / "dataset.json").unlink()
    with pytest.raises(InputError, match=f"another request stands here .{next(iter(other))}"):
        generate_set(replace(painter(4), sampler=SamplerConfig(steps=2, **other)), tmp_path / "set", count=4, shard=4)


def test_a_set_begun_by_an_earlier_version_grows_by_whole_shards_and_its_short_one_is_refused(made: Callable, tmp_path: Path) -> None:
    """Then the count and the batch were part of the request, and a last short shard had the name of a whole one."""
    made("set", 8)
    request = tmp_path / "set" / "request.json"
    stated = json.loads(request.read_bytes())
    assert (stated.pop("noise"), stated.pop("gate")) == ("threefry2x32-20", None)
    assert [stated.pop(setting) for setting in ("shift", "sigma_min", "cache_every")] == [1.0, 0.001, 1]
    request.write_bytes(json.dumps({**stated, "count": 8, "batch": 4}).encode())
    grown = made("set", 12)
    assert grown.splits["synthetic"]["count"] == 12 and (grown.source["sample"]["noise"], grown.source["sample"]["gate"]) == (
        "mt19937",
        None,
    )
    with pytest.raises(InputError, match=r"another request stands here \(shift 1\.0\)"):
        generate_set(replace(painter(4), sampler=SamplerConfig(steps=2, shift=3.0)), tmp_path / "set", count=16, shard=4)
    made("short", 6)
    for suffix in ("tar", "index", "unit"):
        (tmp_path / "short" / f"synthetic-000001.first2.{suffix}").rename(tmp_path / "short" / f"synthetic-000001.{suffix}")
    (tmp_path / "short" / "dataset.json").unlink()
    before = files(tmp_path / "short")
    with pytest.raises(InputError, match="2 images in a shard that shall hold 4"):
        made("short", 16)
    assert files(tmp_path / "short") == before, "refused after hours of work"


class Narrow(Painter):
    """Has memory for so many images at a time."""

    def __init__(self, bears: int) -> None:
        self.bears = bears

    def decode(self, ids_B: torch.Tensor, *, quantise: bool) -> torch.Tensor:
        if len(ids_B) > self.bears:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().decode(ids_B, quantise=quantise)


@pytest.mark.parametrize(("bears", "batch"), [(4, 4), (3, 2), (1, 1)])
def test_what_does_not_fit_into_memory_is_made_with_fewer_at_a_time_and_each_shard_says_how_many(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bears: int, batch: int
) -> None:
    monkeypatch.setattr(images, "latents_of", lambda _, ids, **how: torch.from_numpy(ids))
    narrow = Generator(autoencoder=Narrow(bears), denoiser=Painter(), seed=0, sampler=PLAN["sampler"], batch=4)
    manifest = generate_set(narrow, tmp_path / "set", count=8, shard=4)
    assert manifest.source["sample"]["batch"] == batch
    cubes = list(Dataset(tmp_path / "set").cubes("synthetic"))
    assert [(cube.meta.notes["image"], cube.meta.notes["batch"]) for cube in cubes] == [(i, batch) for i in range(8)]
    assert not list((tmp_path / "set").glob("*.part*"))


def test_where_no_image_fits_it_ends_with_what_would_help(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(images, "latents_of", lambda _, ids, **how: torch.from_numpy(ids))
    narrow = Generator(autoencoder=Narrow(0), denoiser=Painter(), seed=0, sampler=PLAN["sampler"], batch=4)
    with pytest.raises(InputError, match=r"no memory for a single image \(CUDA out of memory"):
        generate_set(narrow, tmp_path / "set", count=8, shard=4)


def test_a_set_begun_in_another_precision_is_refused_and_an_earlier_one_was_in_fp32(made: Callable, tmp_path: Path) -> None:
    made("set", 4)
    request = json.loads((tmp_path / "set" / "request.json").read_bytes())
    assert request["inference"] == stated(FP32)
    half = Painter()
    half.inference = InferenceConfig(precision="bf16")
    other = Generator(autoencoder=half, denoiser=half, seed=0, sampler=PLAN["sampler"], batch=4)
    with pytest.raises(InputError, match=r"another request stands here \(inference .*fp32"):
        generate_set(other, tmp_path / "set", count=8, shard=4)
    del request["inference"]
    (tmp_path / "set" / "request.json").write_text(json.dumps(request))
    assert request_of(tmp_path / "set")["inference"] == stated(FP32)
    with pytest.raises(InputError, match="another request"):
        generate_set(other, tmp_path / "set", count=8, shard=4)
    made("set", 8)


def test_the_next_batch_is_made_while_one_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "latents_of", lambda _, ids, **how: torch.from_numpy(ids))
    begun = [threading.Event() for _ in range(3)]

    class Watched(Painter):
        def decode(self, ids_B: torch.Tensor, *, quantise: bool) -> torch.Tensor:
            begun[int(ids_B[0]) // 2].set()
            return super().decode(ids_B, quantise=quantise)

    made_here = Generator(autoencoder=Watched(), denoiser=Painter(), seed=0, sampler=PLAN["sampler"], batch=2).images(range(6))
    next(made_here)
    assert begun[1].wait(10) and not begun[2].is_set(), "one batch ahead, and no more"
    made_here.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


class Labeller:
    """Stands for a segmenter: a pixel's class follows from its count."""

    def __init__(self, digest: str = "s") -> None:
        self.digest = digest

    def check(self, where: object, **cubes: object) -> None:
        assert cubes == {name: Painter.data[name] for name in ("wavelengths_nm", "scale", "offset")}

    def __call__(self, stored_BCHW: torch.Tensor, fov_HW: torch.Tensor) -> torch.Tensor:
        return ((stored_BCHW[:, 0].int() % 4) * fov_HW).to(torch.uint8)


def labelled(made: Callable, folder: Path, count: int, digest: str = "s") -> Manifest:
    """A set in shards of four whose images are labelled."""
    return generate_set(replace(painter(4), segmenter=Labeller(digest)), folder, count=count, shard=4)


def test_labels_that_a_segmenter_predicts_are_in_the_set_and_marked_there(made: Callable, tmp_path: Path) -> None:
    manifest = labelled(made, tmp_path / "set", 6)
    assert manifest.source["sample"]["segmenter"] == "s"
    for cube in Dataset(tmp_path / "set").cubes("synthetic"):
        assert np.array_equal(cube.labels_HW, cube.data_CHW[0] % 4) and cube.labels_HW.dtype == np.uint8
        assert (cube.meta.notes["labels"], cube.meta.notes["segmenter"]) == ("predicted", "s")
    assert not [fault for _, faults in verify(tmp_path / "set") for fault in faults]
    labelled(made, tmp_path / "set", 12)
    labelled(made, tmp_path / "once", 12)
    assert files(tmp_path / "once").items() <= files(tmp_path / "set").items()
    with pytest.raises(InputError, match=r"another request stands here \(segmenter s\)"):
        labelled(made, tmp_path / "set", 16, "another")
    with pytest.raises(InputError, match=r"another request stands here \(segmenter s\)"):
        made("set", 16)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_set_begun_without_labels_goes_on_without(made: Callable, tmp_path: Path, earlier: bool) -> None:
    made("set", 4)
    if earlier:  # a version that knew of no labels
        request = json.loads((tmp_path / "set" / "request.json").read_bytes())
        assert request.pop("segmenter") is None
        (tmp_path / "set" / "request.json").write_text(json.dumps(request))
    manifest = labelled(made, tmp_path / "set", 8)
    assert manifest.source["sample"]["segmenter"] is None
    assert all(cube.labels_HW is None and "labels" not in cube.meta.notes for cube in Dataset(tmp_path / "set").cubes("synthetic"))


def test_codes_are_not_labelled() -> None:
    autoencoder = Painter()
    autoencoder.codebook = SimpleNamespace(codes_KD=torch.zeros(8, 2))
    with pytest.raises(InputError, match="labels of a set of codes"):
        Generator(autoencoder=autoencoder, denoiser=Painter(), seed=0, sampler=PLAN["sampler"], payload="codes", segmenter=Labeller())
