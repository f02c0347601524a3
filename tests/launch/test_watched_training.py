"""What a person reads in the log of a training before a sample is drawn: how far spectra drift, and that it takes no rank apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldm.checkpoints.trained import load_autoencoder
from ldm.spectra import REGIONS
from ldm.training.monitor import DecodedMonitor, figures
from tests.runs import Place

FIGURES = ("angle_rad", "sid_nats", "kl_nats", "js_nats")


def watched(place: Place, name: str, stage: str) -> list[dict[str, float]]:
    """The monitor's part of each row that has any."""
    rows = [{key: value for key, value in row.items() if key.count("/") == 2} for row in place.curve(name, stage)]
    return [row for row in rows if row]


def test_the_autoencoder_is_watched_by_structure(place: Place) -> None:
    """These cubes have arteries alone: of what no image has, there is no word."""
    rows = watched(place, "first", "vqgan")
    assert len(rows) == 6 and all(row.keys() == {f"val/{figure}/{r}" for figure in FIGURES for r in REGIONS[:2]} for row in rows)
    assert all(value is not None and value > 0 for row in rows for value in row.values())


def test_the_denoiser_is_watched_through_its_autoencoder_by_any_ranks(place: Place) -> None:
    """One process, and two ranks that gather every weight for each call: a rank that decodes less than the other waits for nobody."""
    rows = {}
    for name, mode, world in (("seen", "ddp", 1), ("seen-by-two", "zero3", 2)):
        run = place.run(name, "diffusion")
        run.mkdir()
        (run / "vqgan").symlink_to(place.run("first", "vqgan") / "vqgan")
        place.train(name, "diffusion", mode, world, "diffusion.loop.samples=8", "diffusion.loop.validate_samples=3", expect=True)
        rows[name] = watched(place, name, "diffusion")
    assert len(rows["seen"]) == 1 and all(row.keys() == {f"val/{figure}/fov" for figure in FIGURES} for row in rows["seen"])
    for one, two in zip(rows["seen"], rows["seen-by-two"], strict=True):
        assert two == pytest.approx(one, rel=1e-2) and all(value > 0 for value in one.values())


def test_latents_that_drift_are_told_from_those_that_do_not(place: Place) -> None:
    monitor = DecodedMonitor(load_autoencoder(place.run("first", "vqgan") / "vqgan"), np.array([4, 9]), quantise=False)
    h_BDhw, sample_B = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), np.array([9, 5, 4])
    found = {}
    for drift in (0.0, 0.1, 1.0):
        sums = monitor.sums(h_BDhw, h_BDhw + drift, sample_B)
        assert (sums["pixels_R"][:, 0] > 0).tolist() == [True, False, True], "the others are not decoded"
        found[drift] = figures(**{name: value.sum(0).numpy() for name, value in sums.items()})
    for name in FIGURES:
        nothing, little, much = (found[drift][f"{name}/fov"] for drift in found)
        assert nothing == 0 < little < much, name
