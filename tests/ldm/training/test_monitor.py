"""The monitor of a validation: it tells tilted veins from honest ones, by the evaluation's own figures, at any number of ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from data_shards.cube import LABELS, Cube, CubeMeta
from data_shards.manifest import BandStats
from data_shards.packing.pack import write_dataset
from data_shards.reading.batch import Batch
from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from launch import build
from launch.tree import load
from ldm.comm import Alone
from ldm.evaluation.mean_spectra import MeanSpectra, distances
from ldm.evaluation.spectral import BandHistograms, spectral_distance
from ldm.spectra import REGIONS, band_edges
from ldm.training.engine import Engine
from ldm.training.monitor import SpectralMonitor
from ldm.training.validation import validated
from tests.threads import Threads

BANDS, SIZE, SCALE = 5, 32, 1 / 4095
FOV = np.hypot(*(np.mgrid[:SIZE, :SIZE] - SIZE / 2)) < 14
CLASSES = np.zeros((SIZE, SIZE), np.uint8)
CLASSES[6:9], CLASSES[20:24], CLASSES[12:18, 12:18] = 1, 2, 3


def eye(i: int, labels_HW: np.ndarray | None) -> Cube:
    rng = np.random.default_rng((3, i))
    factor_HW = 1 - 0.3 * (CLASSES == 1) - 0.4 * (CLASSES == 2) + 0.5 * (CLASSES == 3)
    reflectance = rng.normal(0.3, 0.02, (BANDS, SIZE, SIZE)) * np.linspace(1, 1.4, BANDS)[:, None, None] * factor_HW
    meta = CubeMeta(key=f"k{i:03d}", wavelengths_nm=tuple(500.0 + 20 * c for c in range(BANDS)), scale=SCALE, subject_id=f"s{i}")
    return Cube(data_CHW=(reflectance / SCALE).round().clip(0, 65535).astype(np.uint16), meta=meta, labels_HW=labels_HW, fov_HW=FOV)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Five images to judge, one of them without labels."""
    folder = tmp_path_factory.mktemp("monitor") / "set"
    maps = {"train": [CLASSES] * 3, "val": [CLASSES] * 4 + [None]}
    write_dataset(folder, {split: (eye(i, of) for i, of in enumerate(maps[split])) for split in maps}, source={})
    return Dataset(folder)


class Damaged:
    """A judge whose reconstructions are the originals, damaged."""

    def __init__(self, dataset: Dataset, damage: Callable[[Tensor, Batch], Tensor], *, labels: bool = True) -> None:
        self.monitor, self.damage, self.labels, self.scale = SpectralMonitor(dataset.stats), damage, labels, dataset.scale

    def as_loaded(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def validate(self, batch: Batch, samples: int) -> dict[str, Tensor]:
        x_BCHW = batch.cubes_BCHW.float() * self.scale
        labels_BHW = batch.labels_BHW if self.labels else None
        return {"loss": x_BCHW.mean((1, 2, 3)), **self.monitor.sums(x_BCHW, self.damage(x_BCHW, batch), batch.fov_BHW, labels_BHW)}


def honest(x_BCHW: Tensor, batch: Batch) -> Tensor:
    """As a good autoencoder: the error is of no colour. It is a function of the sample."""
    errors = [np.random.default_rng((5, int(i))).normal(0, 0.005, x_BCHW.shape[1:]) for i in batch.sample_B]
    return x_BCHW + torch.from_numpy(np.stack(errors)).float()


def tilted(x_BCHW: Tensor, batch: Batch) -> Tensor:
    """The veins redder by up to 10 %."""
    vein_BHW = np.stack([LABELS["vein"] == CLASSES] * len(x_BCHW))
    return honest(x_BCHW, batch) * (1 + torch.linspace(0, 0.1, BANDS).view(-1, 1, 1) * torch.from_numpy(vein_BHW)[:, None])


def judged(dataset: Dataset, judge: Damaged, comm=Alone(), batch: int = 2, limit: int = 64) -> dict[str, float]:
    stream = CubeStream(dataset, "val", batch_size=batch, rank=comm.rank, world=comm.world, maps=True)
    return validated(judge, comm, stream, samples=0, limit=limit)


def test_tilted_veins_are_told_from_honest_ones(labelled: Dataset) -> None:
    good, bad = judged(labelled, Damaged(labelled, honest)), judged(labelled, Damaged(labelled, tilted))
    assert set(good) == {"val/loss", *(f"val/{name}/{r}" for name in ("angle_rad", "sid_nats", "kl_nats", "js_nats") for r in REGIONS)}
    for name in ("angle_rad", "sid_nats", "kl_nats", "js_nats"):
        assert bad[f"val/{name}/vein"] > 3 * good[f"val/{name}/vein"], name
        assert all(bad[f"val/{name}/{other}"] == good[f"val/{name}/{other}"] for other in ("artery", "onh")), name
    assert good["val/angle_rad/vein"] < 1e-3 and bad["val/angle_rad/vein"] > 0.02, "noise without a colour has no angle"


def test_the_figures_are_those_of_the_evaluation(labelled: Dataset) -> None:
    found = judged(labelled, Damaged(labelled, tilted))
    sides = {name: BandHistograms(band_edges(labelled.stats), scale=SCALE, offset=0.0) for name in ("real", "other")}
    spectra = {name: MeanSpectra(BANDS) for name in ("real", "synthetic")}
    edges_CE = band_edges(labelled.stats)
    for batch in CubeStream(labelled, "val", batch_size=1, maps=True).each(np.arange(5)):
        x_CHW, labels_HW = batch.cubes_BCHW[0].float() * SCALE, None if batch.labels_BHW is None else batch.labels_BHW[0].numpy()
        other_CHW = tilted(x_CHW[None], batch)[0]
        for name, of_side in (("real", x_CHW.numpy()), ("synthetic", other_CHW.numpy())):
            spectra[name].add(of_side, unit=0, fov_HW=FOV, labels_HW=labels_HW)
            masks = [FOV] + [FOV & (LABELS[r] == CLASSES) & (labels_HW is not None) for r in REGIONS[1:]]
            bins = [np.searchsorted(edges_E, x_HW, side="right") for edges_E, x_HW in zip(edges_CE, of_side, strict=True)]
            counts = [[np.bincount(bin_HW[mask], minlength=64) for bin_HW in bins] for mask in masks]
            sides["real" if name == "real" else "other"].merge(np.array([0]), counts_URCK=np.array(counts)[None])
    for region in REGIONS:
        distance = spectral_distance(sides["real"].counts_UCK(region), sides["other"].counts_UCK(region), resamples=2)
        assert found[f"val/kl_nats/{region}"] == pytest.approx(distance.kl_mean, rel=1e-2)  # what lies on an edge rounds
        assert found[f"val/js_nats/{region}"] == pytest.approx(distance.js_mean, rel=1e-2)
        means = distances(spectra, region, 0, resamples=2)
        assert found[f"val/angle_rad/{region}"] == pytest.approx(means.angle_rad, rel=1e-4)
        assert found[f"val/sid_nats/{region}"] == pytest.approx(means.sid, rel=1e-4)


@pytest.mark.parametrize(("world", "batch"), [(2, 1), (2, 2), (3, 1)])
def test_any_number_of_ranks_comes_to_the_same(labelled: Dataset, world: int, batch: int) -> None:
    """Five images: one rank has none left at the end, and one batch none with labels."""
    judge = Damaged(labelled, tilted)
    alone = judged(labelled, judge)
    for of_rank in Threads(world).run(lambda comm: judged(labelled, judge, comm, batch)):
        assert of_rank.keys() == alone.keys()
        assert of_rank == pytest.approx(alone, rel=1e-9)


def test_without_labels_there_is_the_field_of_view(labelled: Dataset) -> None:
    found = judged(labelled, Damaged(labelled, honest, labels=False))
    assert {name.rpartition("/")[2] for name in found} == {"loss", "fov"}


def test_a_structure_that_no_judged_image_has_is_left_out(labelled: Dataset) -> None:
    """As of the last image, alone: it has no labels."""

    def last(batch: Batch, samples: int) -> dict[str, Tensor]:
        return {
            name: value * torch.from_numpy(batch.sample_B == 4).view(-1, *[1] * (value.ndim - 1))
            for name, value in whole(batch, samples).items()
        }

    judge = Damaged(labelled, honest)
    whole, judge.validate = judge.validate, last
    assert {name.rpartition("/")[2] for name in judged(labelled, judge)} == {"loss", "fov"}


def test_what_is_not_finite_is_no_figure_and_no_error(labelled: Dataset) -> None:
    found = judged(labelled, Damaged(labelled, lambda x_BCHW, batch: x_BCHW * float("nan")))
    assert np.isnan(found["val/angle_rad/vein"]) and np.isnan(found["val/sid_nats/vein"])


def test_a_band_of_one_value_is_counted() -> None:
    """Its edges lie 1e-6 apart: at 1,000 that is less than fp32 knows."""
    stats = BandStats(split="train", mean_C=(1000.0,), std_C=(0.0,), min_C=(1000.0,), max_C=(1000.0,), values=1)
    x_BCHW = torch.tensor([999.0, 1000.0, 1000.0, 1001.0]).view(1, 1, 2, 2)
    found = SpectralMonitor(stats).sums(x_BCHW, x_BCHW, None, None)["counts_SRCK"][0, 0, 0, 0]
    assert found[[0, 1, -1]].tolist() == [1, 2, 1]


def test_the_vqgan_says_what_its_reconstructions_show(labelled: Dataset) -> None:
    stage = load("demo").vqgan
    stage = replace(stage, engine=replace(stage.engine, tracker="none"), codebook=replace(stage.codebook, codes=32, warmup_epochs=0))
    engine = Engine(stage.engine)
    trainer, *_ = build.vqgan_trainer(stage, labelled, engine)
    found = validated(trainer, engine.comm, build.validation(labelled, stage.loop, engine, load("demo").data.read), samples=0, limit=4)
    spectra = {name: MeanSpectra(BANDS) for name in ("real", "synthetic")}
    for batch in CubeStream(labelled, "val", batch_size=1, maps=True).each(np.arange(4)):
        x_BCHW = trainer.normaliser(batch.cubes_BCHW, batch.fov_BHW)
        trainer.module.eval()
        with torch.no_grad():
            rec_BCHW = trainer.module(x_BCHW, trainer.codebook, quantise=True).rec_BCHW
        for name, of_side in (("real", x_BCHW), ("synthetic", rec_BCHW)):
            shown_CHW = trainer.normaliser.reflectance(of_side)[0].numpy()
            spectra[name].add(shown_CHW, unit=0, fov_HW=FOV, labels_HW=CLASSES)
    for region in REGIONS:
        assert found[f"val/angle_rad/{region}"] == pytest.approx(distances(spectra, region, 0, resamples=2).angle_rad, rel=1e-3)


def test_latents_that_are_not_judged_load_no_autoencoder(latents: Dataset, tmp_path: Path) -> None:
    """Nothing is judged, there is no split to judge, or the autoencoder is another: the folder is not even looked into, or left."""
    stage = load("demo").diffusion
    stage = replace(stage, engine=replace(stage.engine, tracker="none"))
    judging = replace(stage, loop=replace(stage.loop, validate_samples=0))
    nothing = SimpleNamespace()  # no folder: whoever looks into it fails
    for of in (judging, stage):  # these latents have no split 'val'
        assert build.diffusion_trainer(of, latents, Engine(of.engine), vqgan=nothing)[0].monitor is None
