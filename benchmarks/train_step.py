"""Our trainers against a plain Accelerate and diffusers loop over the same networks, batches, noise and precision.

The other side is what one would write by hand: a DataLoader over tensors in memory, diffusers' encoder, decoder and U-Net, and for the
VQ-GAN the step of taming-transformers (adaptive weight by autograd through the last layer, discriminator after the generator). Ours
streams from shards, with checksums. Equal means: the same losses after the last step, to 1e-3 relative. Rows on a GPU need one.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rounds import arguments, finish, row
from torch.utils.data import DataLoader, Dataset

from data_shards.cube import Cube, CubeMeta
from data_shards.packing.pack import write_dataset
from data_shards.reading import dataset as shards
from data_shards.reading.order import sample_at
from launch import build
from launch.config import DiffusionStage, VQGANStage
from launch.tree import load
from ldm.models.objective import noised, schedule
from ldm.normalise import CubeNormaliser, LatentNormaliser
from ldm.training.engine import Engine
from ldm.training.losses import adaptive_weight, feature_matching, gradient_difference, hinge_discriminator, spectral_angle_rad

SAMPLES = 16


class Tensors(Dataset):
    """Samples in memory, in the order that ours come in."""

    def __init__(self, values: torch.Tensor, seed: int) -> None:
        self.values, self.seed = values, seed

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, position: int) -> torch.Tensor:
        return self.values[int(sample_at(np.array([position]), count=len(self.values), seed=self.seed)[0][0])]


def cubes_of(folder: Path, shape: tuple[int, int, int], dtype: str) -> shards.Dataset:
    """A packed set of random samples: counts of cubes, or latents."""
    rng = np.random.default_rng(0)

    def one(i: int) -> Cube:
        smooth = (
            rng.normal(size=(shape[0], *(max(1, side // 8) for side in shape[1:]))).repeat(8, 1).repeat(8, 2)[:, : shape[1], : shape[2]]
        )
        data = (1500 + 300 * smooth).clip(0, 4095).astype(np.uint16) if dtype == "uint16" else smooth.astype(np.float32)
        wavelengths_nm = tuple(float(450 + 30 * c) for c in range(shape[0]))
        meta = CubeMeta(key=f"c{i:03d}", wavelengths_nm=wavelengths_nm, scale=1 / 4095 if dtype == "uint16" else 1.0, subject_id=f"s{i}")
        return Cube(data_CHW=data, meta=meta)

    write_dataset(folder, {"train": [one(i) for i in range(SAMPLES)]}, source={"encode": {"autoencoder": ""}})
    return shards.Dataset(folder)


def ours(stage: VQGANStage | DiffusionStage, data: shards.Dataset, steps: int) -> Any:
    """A function that trains on from where it is, so many steps a call; returns the last losses."""
    AcceleratorState._reset_state()  # else the second Accelerator of a process has to have the precision of the first
    engine = Engine(replace(stage.engine, tracker="none"), batch=stage.loop.batch)
    make = build.vqgan_trainer if isinstance(stage, VQGANStage) else build.diffusion_trainer
    trainer, stream, _ = make(stage, data, engine)
    batches, samples = stream.batches(0), 0

    def train() -> float:
        nonlocal samples
        for _ in range(steps):
            batch = next(batches)
            with engine.micro_batch(last=True):
                losses, _ = trainer.losses(batch, samples)
                engine.backward(losses)
            finite = all(bool(norm.isfinite()) for norm in engine.gradient_norms().values())
            (skipped,) = engine.any_rank(not finite)
            engine.step({} if skipped else trainer.learning_rates(samples))
            trainer.after_step(samples, stage.loop.batch, skipped=skipped)
            samples += stage.loop.batch
        return float(sum(loss.detach() for loss in losses.values()))

    return train


def plain(stage: VQGANStage | DiffusionStage, data: shards.Dataset) -> tuple[Accelerator, CubeNormaliser | LatentNormaliser, Any]:
    """Accelerator, normaliser and an endless DataLoader over the same samples."""
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(stage.engine.precision, stage.engine.precision), cpu=not torch.cuda.is_available()
    )
    stored = torch.from_numpy(np.stack([data.cube("train", i).data_CHW for i in range(SAMPLES)]))
    loader = DataLoader(Tensors(stored, stage.loop.seed), batch_size=stage.loop.batch, shuffle=False)
    latents = data.payload == "latent"
    normaliser = LatentNormaliser(data.stats) if latents else CubeNormaliser(data.stats, scale=data.scale, offset=data.offset)
    return accelerator, normaliser.to(accelerator.device), iter(loader)


def plain_diffusion(stage: DiffusionStage, data: shards.Dataset, steps: int) -> Any:
    accelerator, normaliser, batches = plain(stage, data)
    net = build.denoiser_module(stage, data.manifest)
    net, optimizer = accelerator.prepare(
        net, torch.optim.AdamW(net.parameters(), lr=stage.optimizer.lr, betas=(0.9, 0.99), weight_decay=0.0)
    )
    average = {name: value.detach().clone() for name, value in net.state_dict().items()}
    position, scheduler = 0, schedule(stage.objective.target)

    def train() -> float:
        nonlocal position
        for _ in range(steps):
            z = normaliser(next(batches).to(accelerator.device))
            at = np.arange(position, position + len(z))
            x, t, target = noised(z, at, stage.objective, seed=stage.loop.seed, scheduler=scheduler)
            with accelerator.autocast():
                loss = F.mse_loss(net(x, t).float(), target)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for name, value in net.state_dict().items():
                    average[name].lerp_(value, 0.001)
            position += len(z)
        return float(loss)

    return train


def plain_vqgan(stage: VQGANStage, data: shards.Dataset, steps: int) -> Any:
    accelerator, normaliser, batches = plain(stage, data)
    vqgan, codebook, discriminator = build.vqgan_modules(stage, data.shape[0])
    rates = {"lr": stage.optimizer.lr, "betas": (0.9, 0.99), "weight_decay": 0.0}
    vqgan, discriminator, of_g, of_d = accelerator.prepare(
        vqgan, discriminator, torch.optim.AdamW(vqgan.parameters(), **rates), torch.optim.AdamW(discriminator.parameters(), **rates)
    )
    codebook = codebook.to(accelerator.device)

    def train() -> float:
        for _ in range(steps):
            x = normaliser(next(batches).to(accelerator.device))
            with accelerator.autocast():
                h = vqgan.encode(x)
                z, index = codebook(h)
                rec = vqgan.decode(z).float()
                angle = spectral_angle_rad(normaliser.reflectance(rec), normaliser.reflectance(x))
                weights = stage.loss
                fit = weights.l1 * F.l1_loss(rec, x) + weights.gradient * gradient_difference(rec, x) + weights.spectral_angle * angle
                with torch.no_grad():
                    _, real = discriminator(x)
                logits, fake = discriminator(rec)
                hinge, matching = -logits.mean(), feature_matching(real, fake)
                last = vqgan.last_layer.weight
                pair = [torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in (fit, hinge)]
                scale = adaptive_weight(*pair, scale=weights.gan).detach()
                commitment = F.mse_loss(h.float(), codebook.codes_KD[index].movedim(-1, 1))
                loss_g = fit + stage.codebook.commitment * commitment + scale * (hinge + weights.feature_matching * matching)
            accelerator.backward(loss_g)
            accelerator.clip_grad_norm_(vqgan.parameters(), 1.0)
            of_g.step()
            of_g.zero_grad()
            of_d.zero_grad()
            with accelerator.autocast():
                loss_d = hinge_discriminator(discriminator(x)[0], discriminator(rec.detach())[0])
            accelerator.backward(loss_d)
            accelerator.clip_grad_norm_(discriminator.parameters(), 1.0)
            of_d.step()
            of_d.zero_grad()
            codebook.update(codebook.statistics(h, index))
        return float(fit + stage.codebook.commitment * commitment + loss_d)

    return train


def stages(device: str, width: int, batch: int) -> tuple[VQGANStage, DiffusionStage]:
    """Both trainings, from the first step on as they are later: with a discriminator, without warm-up."""
    config = load("retina-224")
    shared = {
        "loop": replace(config.vqgan.loop, batch=batch),
        "engine": replace(config.vqgan.engine, precision="fp32" if device == "cpu" else "bf16"),
    }
    vqgan = replace(
        config.vqgan,
        model=replace(config.vqgan.model, channels=width, layers=1, norm_groups=8),
        codebook=replace(config.vqgan.codebook, codes=256, kmeans="never", dead_below=0.0),
        discriminator=replace(config.vqgan.discriminator, channels=width),
        loss=replace(config.vqgan.loss, gan_start_samples=0),
        optimizer=replace(config.vqgan.optimizer, warmup_samples=0),
        flip=False,
        **shared,
    )
    diffusion = replace(
        config.diffusion,
        model=replace(config.diffusion.model, channels=2 * width, layers=1),
        optimizer=replace(config.diffusion.optimizer, warmup_samples=0, decay="constant"),
        **shared,
    )
    return vqgan, diffusion


def rows_of(device: str, name: str, size: int, width: int, batch: int, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Both trainings on cubes of this size, and on latents of a quarter of it; turns of so many steps."""
    close = lambda a, b: abs(a - b) <= 1e-3 * abs(b)  # noqa: E731
    vqgan, diffusion = stages(device, width, batch)
    with tempfile.TemporaryDirectory() as place:
        cubes = cubes_of(Path(place) / "cubes", (16, size, size), "uint16")
        latents = cubes_of(Path(place) / "latents", (8, size // 4, size // 4), "float32")
        sides = {"diffusion": (ours(diffusion, latents, steps), plain_diffusion(diffusion, latents, steps))}
        sides["vqgan"] = (ours(vqgan, cubes, steps), plain_vqgan(vqgan, cubes, steps))
        return [row(f"{net}{name}_{device}_vs_diffusers_loop", *two, close, rounds) for net, two in sides.items()]


def main() -> None:
    args = arguments(__doc__)
    device = "gpu" if torch.cuda.is_available() else "cpu"
    # a name, height and width, channels, batch, steps a turn; what two cores train in minutes is narrow
    sizes = {"cpu": [("", 224, 32, 4, 1), ("_672", 672, 16, 1, 1)], "gpu": [("_224", 224, 64, 16, 8), ("", 672, 64, 4, 8)]}[device]
    chosen, rounds = ([("", 96, 16, 4, 4)], args.rounds) if args.quick else (sizes, 3 * args.rounds)
    rows = [found for size in chosen for found in rows_of(device, *size, rounds)]
    other = {"cpu": "gpu", "gpu": "cpu"}[device]
    finish(
        "train_step", rows, {f"{name}_{other}_vs_diffusers_loop": f"this machine's rows are {device}" for name in ("vqgan", "diffusion")}
    )


if __name__ == "__main__":
    main()
