"""Trainer of the VQ-GAN: reconstruction, codebook, and a PatchGAN with the adaptive weight taken by leaf gradients.

Legend: B batch, C band, H W pixels, D latent channel, K code, N vector.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_shards.errors import InputError
from data_shards.reading.batch import Batch
from data_shards.reading.order import hash64
from data_shards.reading.stream import CubeStream
from ldm.checkpoints.store import Reader, State
from ldm.kmeans.fit import FittedCodebook
from ldm.kmeans.lloyd import kmeans, matched
from ldm.kmeans.seeding import MOST_TRIED
from ldm.models.codebook import Codebook, library, usage_and_perplexity
from ldm.models.discriminator import PatchGAN
from ldm.models.vqgan import VQGAN
from ldm.normalise import BandNormaliser
from ldm.schedules import OptimizerConfig, learning_rate
from ldm.training.engine import Engine
from ldm.training.losses import (
    adaptive_weight,
    feature_matching,
    gradient_difference,
    hinge_discriminator,
    last_layer_gradient,
    spectral_angle_rad,
)


@dataclass(frozen=True, kw_only=True)
class VQGANLossConfig:
    """Attributes:
    l1, gradient, spectral_angle: weights of the reconstruction terms. L1 forgives what few pixels show; the gradient
        difference does not, and brings thin vessels back sooner.
    gan: scale of the adaptive weight; 0 trains without a discriminator.
    feature_matching: weight relative to the generator's hinge term, under the same adaptive weight.
    gan_start_samples: the discriminator joins after so many samples; an earlier start lets it win before the
        reconstruction is any good.
    """

    l1: float = 1.0
    gradient: float = 10.0
    spectral_angle: float = 1.0
    gan: float = 0.5
    feature_matching: float = 1.0
    gan_start_samples: int = 10_000

    def __post_init__(self) -> None:
        if min(self.l1, self.gradient, self.spectral_angle, self.gan, self.feature_matching, self.gan_start_samples) < 0:
            raise InputError("a weight below 0", where="vqgan.loss", expected="weights and gan_start_samples at least 0")


class VQGANTrainer:
    """Losses and codebook of the VQ-GAN. The codebook stays outside the engine, in fp32.

    Args:
        stream: the training stream; k-means reads the epoch's first samples through it.
        fov_HW: the field of view that generated cubes get; kept in the checkpoint.
        dataset: digest of what it is trained on; a codebook to begin with has to come from it.
        total: samples of the whole run, for the schedules.
        flip: mirror cubes left to right, by (seed, sample, epoch).
    """

    USED = ("vqgan.model.", "codebook.", "fov_HW")

    def __init__(
        self,
        engine: Engine,
        vqgan: VQGAN,
        codebook: Codebook,
        discriminator: PatchGAN,
        normaliser: BandNormaliser,
        stream: CubeStream,
        *,
        fov_HW: Tensor,
        dataset: str,
        loss: VQGANLossConfig,
        optimizer: OptimizerConfig,
        total: int,
        seed: int,
        flip: bool = True,
    ) -> None:
        self.engine, self.config, self.optimizer, self.total, self.seed, self.flip = engine, loss, optimizer, total, seed, flip
        rates: dict[str, Any] = {"lr": optimizer.lr, "betas": (optimizer.beta1, optimizer.beta2), "weight_decay": optimizer.weight_decay}
        self.last_layer_shape = vqgan.last_layer.weight.shape  # ZeRO-3 takes the weight apart
        self.vqgan = engine.add("vqgan", vqgan, **rates)
        self.discriminator = engine.add("discriminator", discriminator, **rates)
        self.module, self.plain_discriminator = vqgan, discriminator
        self.codebook = codebook.to(engine.device)
        if codebook.config.gradient == "rotation":
            library("vector_quantize_pytorch", "vqgan.codebook.gradient=rotation")  # absent, it is told before anything is written
        learned = codebook.learned()
        self.code_map = engine.add("code_map", learned, **rates) if learned is not None else None
        self._map_codes()
        self.normaliser = normaliser.to(engine.device)
        self.stream, self.fov_HW, self.dataset = stream, fov_HW, dataset
        self.statistics: Tensor | None = None
        self.latents: list[tuple[np.ndarray, Tensor]] = []
        self.counts_K = torch.zeros(codebook.config.codes, dtype=torch.float64, device=engine.device)

    def losses(self, batch: Batch, samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One micro batch: the loss of each network, and their terms for the log."""
        x_BCHW, fov_BHW = self._prepared(batch)
        quantise = self._quantises(samples)
        rec_BCHW, h_BDHW, index_BHW, last_input = self.vqgan(x_BCHW, self.codebook, quantise=quantise)
        if quantise:
            self._remember(batch, h_BDHW, index_BHW)
        # outside the field of view both are 0: nothing there is judged, by any term
        rec_BCHW = rec_BCHW.float() if fov_BHW is None else rec_BCHW.float() * fov_BHW[:, None]

        # every judge of the reconstruction sees a leaf, and what it says comes back as a direction: see `last_layer_gradient`
        leaf = rec_BCHW.detach().requires_grad_()
        reconstruction, terms = self._reconstruction(leaf, x_BCHW, fov_BHW)
        (direction,) = torch.autograd.grad(reconstruction, leaf)
        losses: dict[str, Tensor] = {}
        if samples >= self.config.gan_start_samples and self.config.gan:
            losses["discriminator"], real_features, d_terms = self._discriminator(x_BCHW, rec_BCHW)
            generator, gan_terms = self._generator(leaf, real_features, direction, last_input, fov_BHW)
            direction, terms = direction + generator, {**terms, **gan_terms, **d_terms}
        fed_back = (rec_BCHW * direction).sum()
        commitment = self.codebook.commitment(h_BDHW, index_BHW)
        committed = self.codebook.config.commitment * commitment * quantise
        terms["loss/commitment"] = commitment.detach()
        if self.code_map is not None and quantise:
            codes_KD = self.code_map(self.codebook.fixed_KD)
            losses["code_map"] = F.mse_loss(codes_KD[index_BHW].movedim(-1, 1), h_BDHW.detach().float())
        return {"vqgan": fed_back - fed_back.detach() + reconstruction.detach() + committed, **losses}, terms

    def validate(self, batch: Batch, samples: int) -> dict[str, Tensor]:
        """Reconstruction loss of each cube, without a discriminator's opinion; quantised if the last step was."""
        x_BCHW, fov_BHW = self._normalised(batch)
        quantise = self._quantises(samples)
        self.module.eval()
        rec_BCHW = self.module(x_BCHW, self.codebook, quantise=quantise)[0].float()
        self.module.train()
        rec_BCHW = rec_BCHW if fov_BHW is None else rec_BCHW * fov_BHW[:, None]
        cubes = [slice(b, b + 1) for b in range(len(x_BCHW))]
        loss_B = [self._reconstruction(rec_BCHW[b], x_BCHW[b], None if fov_BHW is None else fov_BHW[b])[0] for b in cubes]
        return {"loss": torch.stack(loss_B), "l1": (rec_BCHW - x_BCHW).abs().mean((1, 2, 3))}

    def _quantises(self, samples: int) -> bool:
        """Whether latents pass through the codes by now."""
        return samples // self.stream.epoch_samples >= self.codebook.config.warmup_epochs

    def _reconstruction(self, rec_BCHW: Tensor, x_BCHW: Tensor, fov_BHW: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted reconstruction loss in normalised units, the spectral angle in reflectance; and its terms."""
        l1, gradient = F.l1_loss(rec_BCHW, x_BCHW), gradient_difference(rec_BCHW, x_BCHW)
        angle = spectral_angle_rad(self.normaliser.reflectance(rec_BCHW), self.normaliser.reflectance(x_BCHW), fov_BHW)
        terms = {"loss/l1": l1.detach(), "loss/gradient": gradient.detach(), "loss/spectral_angle_rad": angle.detach()}
        return self.config.l1 * l1 + self.config.gradient * gradient + self.config.spectral_angle * angle, terms

    def _generator(
        self, leaf_BCHW: Tensor, real_features: list[Tensor], rec_gradient_BCHW: Tensor, last_input: Tensor, fov_BHW: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradient of the generator's terms at the reconstruction, under the adaptive weight."""
        with frozen(self.plain_discriminator):
            logits, features = self.plain_discriminator(leaf_BCHW)
            hinge, matching = -logits.mean(), feature_matching(real_features, features)
            (gan_gradient,) = torch.autograd.grad(hinge, leaf_BCHW, retain_graph=True)
            (matching_gradient,) = torch.autograd.grad(matching, leaf_BCHW)
        inside = 1.0 if fov_BHW is None else fov_BHW[:, None].float()  # the mask is part of the way back to the last layer
        at_output = (rec_gradient_BCHW, gan_gradient)
        at_weight = torch.stack([last_layer_gradient(last_input, g * inside, self.last_layer_shape) for g in at_output])
        rec_weight, gan_weight = self.engine.all_reduce_sum_(at_weight) / self.engine.world
        weight = adaptive_weight(rec_weight, gan_weight, scale=self.config.gan)
        terms = {"loss/generator": hinge.detach(), "loss/feature_matching": matching.detach(), "gan/adaptive_weight": weight}
        return weight * (gan_gradient + self.config.feature_matching * matching_gradient), terms

    def _discriminator(self, x_BCHW: Tensor, rec_BCHW: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """Hinge loss on real and reconstructed cubes, through the wrapped discriminator in one call; features of the real ones."""
        logits, features = self.discriminator(torch.cat([x_BCHW, rec_BCHW.detach().to(x_BCHW)]))
        real, fake = logits.float().chunk(2)
        loss = hinge_discriminator(real, fake)
        terms = {"loss/discriminator": loss.detach(), "gan/logit_real": real.mean().detach(), "gan/logit_fake": fake.mean().detach()}
        return loss, [feature.detach().chunk(2)[0] for feature in features], terms

    def _prepared(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Normalised, perhaps mirrored cubes and field of view, on the device."""
        x_BCHW, fov_BHW = self._normalised(batch)
        if self.flip:
            mirrored = torch.from_numpy(hash64(self.seed, batch.sample_B, batch.epoch_B, 7) % np.uint64(2) == 1).to(self.engine.device)
            x_BCHW = torch.where(mirrored[:, None, None, None], x_BCHW.flip(-1), x_BCHW)
            fov_BHW = torch.where(mirrored[:, None, None], fov_BHW.flip(-1), fov_BHW) if fov_BHW is not None else None
        return x_BCHW, fov_BHW

    def _normalised(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        fov_BHW = batch.fov_BHW.to(self.engine.device) if batch.fov_BHW is not None else None
        return self.engine.laid_out(self.normaliser(batch.cubes_BCHW.to(self.engine.device), fov_BHW)), fov_BHW

    # --- codebook -----------------------------------------------------------------------------------------------

    def _remember(self, batch: Batch, h_BDHW: Tensor, index_BHW: Tensor) -> None:
        """Keep what the codebook's step needs: sums of the step so far, and the latents revival may draw from."""
        packed = self.codebook.statistics(h_BDHW, index_BHW)
        self.statistics = packed if self.statistics is None else self.statistics + packed
        self.latents.append((batch.position_B, h_BDHW.detach().float()))

    def after_step(self, samples: int, batch: int, *, skipped: bool) -> dict[str, float]:
        """EMA step and revival from the whole global batch; nothing when the step was skipped."""
        statistics, latents, self.statistics, self.latents = self.statistics, self.latents, None, []
        if skipped or statistics is None:
            return {}
        packed = self.engine.all_reduce_sum_(statistics)
        self.counts_K += packed[:, -1]
        self.codebook.update(packed)
        self._map_codes()
        dead = self.codebook.dead()
        if len(dead):
            self.codebook.revive(dead, self._drawn(latents, samples, batch, len(dead)))
        usage, perplexity = usage_and_perplexity(self.counts_K)
        return {"codes/usage": usage, "codes/perplexity": perplexity, "codes/revived": float(len(dead))}

    @torch.no_grad()
    def _map_codes(self) -> None:
        """The codes of the present map, where they are learned."""
        if self.code_map is not None:
            self.codebook.codes_KD.copy_(self.code_map(self.codebook.fixed_KD))

    def _drawn(self, latents: list[tuple[np.ndarray, Tensor]], samples: int, batch: int, n: int) -> Tensor:
        """n latents of the global batch by hash of their place in it: each rank fills in those it holds, then all add."""
        D, h, w = latents[0][1].shape[1:]
        flat = hash64(self.seed, samples, np.arange(n), 11) % np.uint64(batch * h * w)
        position, place = samples + (flat // np.uint64(h * w)).astype(np.int64), (flat % np.uint64(h * w)).astype(np.int64)
        drawn_ND = torch.zeros(n, D, device=self.engine.device)
        for position_B, h_BDHW in latents:
            z_BND = h_BDHW.flatten(2).movedim(1, -1)
            for b, p in enumerate(position_B):
                mine = np.flatnonzero(position == p)
                drawn_ND[mine] = z_BND[b, place[mine]]
        return self.engine.all_reduce_sum_(drawn_ND)

    def start_epoch(self, epoch: int) -> dict[str, float]:
        """Usage of the epoch that ended; then, where configured, new codes by k-means over this epoch's latents."""
        ended = {}
        if self.counts_K.sum() > 0:
            usage, perplexity = usage_and_perplexity(self.counts_K)
            ended = {"codes/usage_epoch": usage, "codes/perplexity_epoch": perplexity}
        self.counts_K.zero_()
        config = self.codebook.config
        if config.start and epoch == 0:
            begun = FittedCodebook.read(Path(config.start))
            channels = self.module.config.latent_channels
            begun.check(codes=config.codes, channels=channels, dataset=self.dataset, where=config.start)
            self.codebook.reset(begun.codes_KD.to(self.counts_K.device), begun.counts_K.to(self.counts_K.device))
        when, warmup = config.kmeans, config.warmup_epochs
        if when == "never" or epoch < warmup or (when == "first" and epoch > warmup):
            return ended
        z_ND, ids_N = self._epoch_latents(epoch)
        began, first = time.perf_counter(), epoch == warmup
        start = None if first and not config.start else self.codebook.codes_KD
        # codes that were given are kept; of very many, drawing new ones and matching them with the old takes minutes
        reseed = not (first and config.start) and config.codes <= MOST_TRIED
        found = kmeans(
            z_ND,
            ids_N,
            k=config.codes,
            comm=self.engine,
            seed=self.seed,
            start_KD=start,
            reseed=reseed,
            iterations=config.kmeans_iterations,
        )
        codes_KD, counts_K = found.codes_KD, found.counts_K
        if found.fresh and start is not None:
            order_K = matched(codes_KD, start, self.engine)
            codes_KD, counts_K = codes_KD[order_K], counts_K[order_K]
        self.codebook.reset(codes_KD, counts_K)
        told = {"kmeans/inertia": found.inertia, "kmeans/iterations": float(found.iterations), "kmeans/fresh": float(found.fresh)}
        return {**ended, **told, "speed/kmeans_s": time.perf_counter() - began}

    @torch.no_grad()
    def _epoch_latents(self, epoch: int) -> tuple[Tensor, np.ndarray]:
        """This rank's share of the latents that k-means sees: places by hash in the epoch's first samples."""
        count, wanted = self.stream.epoch_samples, self.codebook.config.kmeans_vectors
        side = [n // self.module.config.compression for n in self.stream.shape[1:]]
        places = side[0] * side[1]
        n_samples = min(count, max(math.ceil(wanted / places), min(32, count)))
        each = min(places, math.ceil(wanted / n_samples))
        g = epoch * count + np.arange(n_samples)[self.engine.rank :: self.engine.world]
        g_first = np.array([epoch * count])
        latents, ids = [torch.empty(0, self.module.config.latent_channels, device=self.engine.device)], [np.empty(0, np.int64)]
        # under ZeRO-3 a call gathers weights from all ranks: each makes as many calls as the one with the most samples
        calls = math.ceil(math.ceil(n_samples / self.engine.world) / self.stream.batch_size)
        self.module.eval()
        for chunk in np.array_split(g, calls):
            sample_B, epoch_B = self.stream.place(chunk if len(chunk) else g_first)
            with self.engine.autocast():
                h_BDHW = self.module(self._normalised(self.stream.read(sample_B, epoch_B))[0])
            for b, position in enumerate(chunk):
                chosen = np.argsort(hash64(self.seed, position, np.arange(places), 13))[:each]
                latents.append(h_BDHW[b].flatten(1).T[torch.from_numpy(chosen).to(h_BDHW.device)].float())
                ids.append(position * places + chosen)
        self.module.train()
        return torch.cat(latents), np.concatenate(ids)

    # --- schedules and state ------------------------------------------------------------------------------------

    def taking_part(self, samples: int) -> tuple[str, ...]:
        """Networks, and the codes, that the step there goes through."""
        active = {
            "vqgan": True,
            "discriminator": self.config.gan > 0 and samples >= self.config.gan_start_samples,
            "code_map": self.code_map is not None and self._quantises(samples),
            "codes": self._quantises(samples),
        }
        return tuple(name for name, begun in active.items() if begun)

    def may_be_best(self, samples: int) -> bool:
        """Whoever loads it quantises: so did the step. And nothing that the run comes to is missing, as a discriminator would be."""
        taken = self.taking_part(samples)
        return "codes" in taken and set(self.taking_part(self.total - 1)) <= set(taken)

    def learning_rates(self, samples: int) -> dict[str, float]:
        """What has not begun has none: its optimizer does not move on zero gradients."""
        rate = learning_rate(samples, self.total, self.optimizer)
        return {name: rate for name in self.taking_part(samples) if name != "codes"}

    def as_loaded(self) -> contextlib.AbstractContextManager[None]:
        """The weights of the last step are those that are loaded."""
        return contextlib.nullcontext()

    def state(self) -> State:
        """Codebook with its EMA state, and the counts of the epoch so far."""
        codebook: State = {f"codebook.{k}": v for k, v in self.codebook.state_dict().items()}
        return {**codebook, "codebook_counts": self.counts_K, "fov_HW": self.fov_HW.to(torch.uint8)}

    def load(self, read: Reader) -> None:
        """The inverse of `state`."""
        for name, value in self.codebook.state_dict().items():
            value.copy_(read(f"codebook.{name}", shape=value.shape))
        self.counts_K.copy_(read("codebook_counts", shape=self.counts_K.shape))


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradients for the module's weights inside the block: ZeRO's hooks on them stay quiet."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
