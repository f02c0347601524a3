"""SSIM against scikit-image, and what becomes of thin vessels in reconstructions that are damaged by degrees."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from skimage.metrics import structural_similarity

from data_shards.cube import Cube, CubeMeta
from data_shards.packing.pack import write_dataset
from data_shards.reading.dataset import Dataset
from ldm.checkpoints.trained import Autoencoder
from ldm.evaluation import reconstruction as module
from ldm.evaluation.intervals import ratio_by_person
from ldm.evaluation.reconstruction import contrast, reconstruction, ssim, vessels_and_rings
from ldm.models.config import CodebookConfig, VQGANConfig
from ldm.models.other_codebooks import codebook_from
from ldm.models.vqgan import VQGAN, initialised
from ldm.normalise import CubeNormaliser

SIZE = 48
LABELS = np.zeros((SIZE, SIZE), np.uint8)
LABELS[12:14, 4:44], LABELS[30:37, 4:44], LABELS[20:22, 4:44] = 1, 2, 1  # thin, wide, thin
FOV = np.ones((SIZE, SIZE), bool)
FOV[:3], FOV[:, -4:] = False, False


def eye(i, labels=LABELS, nm=(640.0, 555.0)):
    rng = np.random.default_rng(i)
    reflectance = rng.normal(0.4, 0.01, (2, SIZE, SIZE)) * (1 - rng.uniform(0.2, 0.4) * (LABELS > 0))
    meta = CubeMeta(key=f"k{i:03d}", wavelengths_nm=nm, scale=1 / 4095, subject_id=f"s{i // 2}")
    return Cube(data_CHW=(reflectance * 4095).round().astype(np.uint16), meta=meta, labels_HW=labels, fov_HW=FOV)


def eyes(folder, **how):
    write_dataset(folder, {"train": (eye(i, **how) for i in range(4)), "val": (eye(i, **how) for i in range(4, 12))}, source={})
    return Dataset(folder)


def rebuilt(dataset, monkeypatch, damage):
    """The figures where an autoencoder gives back the original, damaged."""
    config = VQGANConfig(bands=2, compression=4, latent_channels=4, channels=8, layers=1, norm_groups=4)
    autoencoder = Autoencoder(
        vqgan=initialised(lambda: VQGAN(config), 0).eval(),
        codebook=codebook_from(CodebookConfig(codes=16), channels=4, seed=0),
        normaliser=CubeNormaliser(dataset.stats, scale=dataset.scale, offset=dataset.offset),
        fov_HW=torch.from_numpy(FOV),
        data={"wavelengths_nm": list(dataset.wavelengths_nm)},
        digest="a" * 64,
    )

    def reconstructed(_, batch):
        truth = batch.cubes_BCHW.double().numpy() * dataset.scale + dataset.offset
        return torch.from_numpy(damage(truth)), torch.zeros(len(truth), 12, 12, dtype=torch.int64)

    monkeypatch.setattr(module, "reconstructed", reconstructed)
    return reconstruction(dataset, autoencoder)


def pairs(seed=0, shape=(3, 40, 48)):
    rng = np.random.default_rng(seed)
    a = scipy.ndimage.gaussian_filter(rng.random(shape), (0, 2, 2))
    return a, a + rng.normal(0, 0.02, shape)


def test_ssim_equals_scikit_image():
    a, b = pairs()
    kind = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 0.7}
    maps = [structural_similarity(x, y, full=True, **kind) for x, y in zip(a, b, strict=True)]
    found = ssim(torch.from_numpy(a), torch.from_numpy(b), torch.ones(40, 48, dtype=torch.bool), range_=0.7)
    assert found == pytest.approx(np.mean([whole for whole, _ in maps]), rel=1e-9)
    fov = np.hypot(*np.mgrid[-20:20, -24:24]) < 18
    within = scipy.ndimage.binary_erosion(fov, np.ones((11, 11)))
    found = ssim(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(fov), range_=0.7)
    assert found == pytest.approx(np.mean([map_HW[within] for _, map_HW in maps]), rel=1e-9)


def test_nothing_outside_the_field_of_view_counts():
    a, b = pairs()
    fov = torch.ones(40, 48, dtype=torch.bool)
    fov[:6] = False
    b[:, :6] = 99
    assert ssim(torch.from_numpy(a), torch.from_numpy(b), fov, range_=0.7) > 0.5
    assert math.isnan(ssim(torch.from_numpy(a), torch.from_numpy(b), torch.zeros_like(fov), range_=0.7))
    assert math.isnan(ssim(*(torch.zeros(1, 8, 64) for _ in range(2)), torch.ones(8, 64, dtype=torch.bool), range_=0.7))


def test_thin_vessels_and_the_background_about_them():
    thin, ring = vessels_and_rings(LABELS, FOV)
    assert (thin & (LABELS == 1)).sum() == thin.sum() == 160 and not (thin | ring)[30:37].any()
    assert FOV[ring].all() and (LABELS[ring] == 0).all() and not ring[scipy.ndimage.binary_dilation(LABELS > 0)].any()
    x = np.where(thin, 0.3, 0.5)
    assert contrast(x, thin, ring) == pytest.approx(0.4)
    assert math.isnan(contrast(x, thin & False, ring)) and math.isnan(contrast(x, thin, ring & False))


def test_damage_lowers_both_in_order_and_erased_thin_vessels_are_plain(tmp_path, monkeypatch):
    dataset = eyes(tmp_path / "set")
    blurs = [rebuilt(dataset, monkeypatch, lambda x, s=s: scipy.ndimage.gaussian_filter(x, (0, 0, s, s))) for s in (0, 0.7, 1.5, 3)]
    assert blurs[0].ssim == pytest.approx(1) and blurs[0].thin_vessel_contrast == pytest.approx(1)
    for figure in ("ssim", "thin_vessel_contrast"):
        values = [getattr(result, figure) for result in blurs]
        assert values == sorted(values, reverse=True) and values[-1] < 0.6
        for result in blurs[1:]:
            low, high = getattr(result, f"{figure}_interval")
            assert low <= getattr(result, figure) <= high < 1
    assert (blurs[0].people, blurs[0].thin_vessel_images, blurs[0].thin_vessel_nm) == (4, 8, 555.0)

    def without_thin_vessels(x_BCHW):
        thin, ring = vessels_and_rings(LABELS, FOV)
        return np.where(thin, x_BCHW[..., ring].mean(-1)[..., None, None], x_BCHW)

    erased = rebuilt(dataset, monkeypatch, without_thin_vessels)
    assert erased.thin_vessel_contrast == pytest.approx(0, abs=0.01) and erased.ssim < 1


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"nm": (640.0, 600.0)}, "no band within 30 nm of 555 nm"),
        ({"labels": None}, "no image has labelled vessels of at most 3 pixels"),
    ],
)
def test_without_the_band_or_labels_there_is_a_reason_and_no_number(how, reason, tmp_path, monkeypatch):
    found = rebuilt(eyes(tmp_path / "set", **how), monkeypatch, lambda x: x)
    assert found.thin_vessel_reason == reason and found.thin_vessel_contrast is found.thin_vessel_contrast_interval is None
    assert found.ssim == pytest.approx(1)


def test_intervals_are_by_person():
    values, ones = np.repeat([0.5, 0.7, 0.9, 0.6], 5), np.ones(20)
    by_person = ratio_by_person(values, ones, [str(i // 5) for i in range(20)], (0,))
    by_image = ratio_by_person(values, ones, [str(i) for i in range(20)], (0,))
    assert by_person[0] == pytest.approx(values.mean()) and by_image[0] == pytest.approx(values.mean())
    assert np.ptp(by_person[1]) > 1.5 * np.ptp(by_image[1])
    assert ratio_by_person(values, ones, ["one"] * 20, (0,)) == (pytest.approx(values.mean()), None)
