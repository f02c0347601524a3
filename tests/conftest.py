"""Fixtures shared by all floors: small cubes made by hand, so that a test of one part does not lean on the phantom."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from data_shards.cube import Cube, CubeMeta
from data_shards.folder import write_cube
from data_shards.packing.pack import pack, write_dataset
from data_shards.reading.dataset import Dataset
from slurm.local_cluster import LocalCluster, missing
from tests.ranks import shared
from tests.runs import Place


def made_cube(i: int, *, bands: int = 4, size: int = 32, subject: str | None = None, **notes) -> Cube:
    """A smooth random spectrum field with a disc of view; sample i is a function of i."""
    rng = np.random.default_rng((17, i))
    yy, xx = np.mgrid[:size, :size] / size - 0.5
    waves = sum(rng.normal() * np.cos(2 * np.pi * (rng.integers(0, 3) * xx + rng.integers(0, 3) * yy + rng.random())) for _ in range(4))
    slope_C = rng.normal(1, 0.2, bands)
    data = 2000 + 400 * slope_C[:, None, None] * waves + rng.normal(0, 10, (bands, size, size))
    fov = xx**2 + yy**2 < 0.23
    labels = np.where(fov & (waves > 1), 1, 0).astype(np.uint8)
    return Cube(
        data_CHW=np.where(fov, data, 0).clip(0, 4095).astype(np.uint16),
        meta=CubeMeta(
            key=f"c{i:04d}",
            wavelengths_nm=tuple(float(500 + 20 * c) for c in range(bands)),
            scale=1 / 4095,
            subject_id=subject or f"s{i // 2:03d}",
            eye=("OD", "OS")[i % 2],
            notes=notes,
        ),
        labels_HW=labels,
        fov_HW=fov,
    )


FIRST = ("slurm", "ranks")  # the long ones


@functools.cache
def together(path: str) -> str:
    """Which tests one process runs, of the two of `make test`: what waits for a SLURM, what trains on ranks, or a file.

    So there is one cluster and one process that forks ranks, and what waits is beside what computes.
    """
    file = Path(__file__).parents[1] / path
    if file.parent.name == "slurm":
        return "slurm"
    return "ranks" if "place: Place" in file.read_text() else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """By rooms, not by marks: pytest-xdist 3.8 loses the groups of `--dist loadgroup` under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRoom(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return together(nodeid.partition("::")[0])

    return ByRoom(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rooms = {item: together(item.nodeid.partition("::")[0]) for item in items}
    items.sort(key=lambda item: FIRST.index(rooms[item]) if rooms[item] in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def cube_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 loose cubes of 20 subjects, 4 bands, 32×32."""
    folder = tmp_path_factory.mktemp("loose")
    for i in range(40):
        write_cube(folder, made_cube(i))
    return folder


@pytest.fixture(scope="session")
def packed(cube_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, packed: 32 train, 4 val, 4 test."""
    out = tmp_path_factory.mktemp("packed") / "set"
    pack(cube_folder, out, shard_mib=1)
    return out


@pytest.fixture
def dataset(packed: Path) -> Dataset:
    return Dataset(packed)


@pytest.fixture(scope="session")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """40 latents of 4×8×8, as encoded from a dataset of another machine."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("latents") / "set"
    cubes = (
        Cube(
            data_CHW=(rng.normal(size=(4, 8, 8)) + rng.integers(0, 6, (1, 8, 8))).astype(np.float32),
            meta=CubeMeta(key=f"z{i:03d}", wavelengths_nm=(0.0, 1.0, 2.0, 3.0), scale=1.0, subject_id=f"s{i}"),
        )
        for i in range(40)
    )
    write_dataset(folder, {"train": cubes}, source={"encode": {"dataset": "d" * 64, "autoencoder": "a" * 64}})
    return Dataset(folder)


@pytest.fixture(scope="session")
def place(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A folder for tiny trainings, and a process that forks their ranks."""
    pytest.importorskip("deepspeed", reason="the extra 'deepspeed' is not installed: pip install -c constraints.txt -e '.[deepspeed]'")
    return Place(tmp_path_factory.mktemp("runs"), packed, shared())


@pytest.fixture
def tiny_disk(tmp_path: Path):
    """A file system of 200 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="session")
def session_cluster():
    """A real SLURM of two nodes for the session, or the reason why there is none here."""
    if reason := missing():
        pytest.skip(reason)
    with LocalCluster(nodes=2) as running:
        yield running


@pytest.fixture
def cluster(session_cluster, monkeypatch, tmp_path_factory):
    """The running cluster, with this process's SLURM commands pointed to it."""
    for name, value in session_cluster.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # what squeue said is kept there
    return session_cluster
