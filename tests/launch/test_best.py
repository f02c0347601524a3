"""The best checkpoint is the best of what is loaded: quantised, with all that the run comes to, by the averaged weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from ldm.checkpoints.trained import load_denoiser
from ldm.models.objective import noised, schedule
from tests.runs import Place

WARM_UP = 32  # samples: an epoch


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        (["codebook.warmup_epochs=1", "codebook.codes=2", "loop.batch=2", "optimizer.lr=0.002", "loop.samples=40"], WARM_UP + 8),
        (["loss.gan_start_samples=40"], 48),
        (["loss.gan_start_samples=4000"], 8),  # none comes in this run
        (["codebook.warmup_epochs=1", "loss.gan=0"], WARM_UP + 8),
        (["codebook.warmup_epochs=2"], None),
    ],
)
def test_the_best_has_all_that_the_run_comes_to(place: Place, settings: list[str], first: int | None) -> None:
    """A state that was not quantised yet reconstructs better, and is worse once it is loaded and quantised."""
    name = f"best-{len(settings)}-{settings[0]}"
    place.train(name, "vqgan", "ddp", 1, "vqgan.optimizer.lr=0.001", *(f"vqgan.{setting}" for setting in settings), expect=True)
    losses = {row["samples"]: row["val/loss"] for row in place.curve(name, "vqgan") if "val/loss" in row}
    eligible = {samples: loss for samples, loss in losses.items() if first and samples >= first}
    best = place.store(name, "vqgan").newest(progress_exists=True).state["best"]
    assert (best or {}).get("samples") == min(eligible, key=eligible.get, default=None), losses
    assert "codebook.codes=2" not in settings or min(losses, key=losses.get) <= WARM_UP, "the warm-up was no temptation"


def test_a_longer_run_that_comes_to_its_discriminator_forgets_a_best_without(place: Place) -> None:
    words = ["vqgan.loss.gan_start_samples=48", "vqgan.optimizer.lr=0.001"]
    place.train("longer", "vqgan", "ddp", 1, *words, expect=True)
    assert place.store("longer", "vqgan").newest(progress_exists=True).state["best"]["samples"] <= 48
    place.train("longer", "vqgan", "ddp", 1, *words, "vqgan.loop.samples=64", expect=True)
    assert place.store("longer", "vqgan").newest(progress_exists=True).state["best"]["samples"] > 48


@pytest.mark.parametrize(("mode", "world"), [("ddp", 1), ("zero3", 2)])
def test_the_averaged_weights_are_judged_and_the_training_goes_on_with_its_own(place: Place, mode: str, world: int) -> None:
    name, words = f"averaged-{mode}", ["diffusion.optimizer.lr=0.003", "diffusion.loop.samples=24"]
    place.train(name, "diffusion", mode, world, *words, expect=True)
    said = place.curve(name, "diffusion")
    denoiser = load_denoiser(place.run(name, "diffusion") / "diffusion")
    assert said[-1]["val/loss"] == pytest.approx(loss_of(denoiser.net, denoiser.normaliser, place.run(name, "diffusion")), rel=1e-4)
    # what is judged has no say in what is trained
    place.train(f"{name}-unjudged", "diffusion", mode, world, *words, "diffusion.loop.validate_samples=0", expect=True)
    unjudged = place.curve(f"{name}-unjudged", "diffusion")
    assert [row["loss"] for row in said] == [row["loss"] for row in unjudged]


@torch.no_grad()
def loss_of(net: torch.nn.Module, normaliser: torch.nn.Module, run: Path) -> float:
    """The denoising loss on the held-out latents, written down a second time."""
    from ldm.models.config import ObjectiveConfig

    batch = CubeStream(Dataset(run / "latents"), "val", batch_size=4, maps=False).read(np.arange(4))
    x, t, target = noised(normaliser(batch.cubes_BCHW), batch.sample_B, ObjectiveConfig(), seed=1, scheduler=schedule("flow"))
    return float((net(x, t) - target).square().mean())
