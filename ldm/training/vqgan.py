"""Trainer of the VQ-GAN: reconstruction, codebook, and a PatchGAN with the adaptive weight taken by leaf gradients.

Legend: B batch, C band, H W pixels, D latent channel, F feature of the last layer's input, K code, N vector.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_shards.reading.batch import Batch
from data_shards.reading.order import hash64
from data_shards.reading.stream import CubeStream
from ldm.checkpoints.store import Reader, State
from ldm.models.codebook import Codebook, library, usage_and_perplexity
from ldm.models.discriminator import PatchGAN
from ldm.models.feature_encoder import FeatureEncoder
from ldm.models.noise import PENALTY, normal_at
from ldm.models.vqgan import VQGAN
from ldm.normalise import CubeNormaliser
from ldm.schedules import OptimizerConfig, learning_rate
from ldm.training.config import EMAConfig, VQGANLossConfig
from ldm.training.ema import EMA, decay_at, in_place
from ldm.training.engine import Engine
from ldm.training.equivariance import movement
from ldm.training.losses import (
    adaptive_weight,
    feature_matching,
    gradient_difference,
    hinge_discriminator,
    last_layer_gradient,
    perceptual_distance,
    spectral_angle_rad,
)
from ldm.training.monitor import SpectralMonitor
from ldm.training.reseeding import Reseeding

PENALTY_SIGMA = 0.1
"""Deviation of the noise of the R1 penalty, in deviations of a band (Lin et al. 2025 have 0.01 on pixels of [-1, 1])."""


class VQGANTrainer:
    """Losses and codebook of the VQ-GAN. The codebook stays outside the engine, in fp32.

    Args:
        stream: the training stream; its seed is the training's.
        fov_HW: the field of view that generated cubes get; kept in the checkpoint.
        dataset: digest of what it is trained on; a codebook to begin with has to come from it.
        total: samples of the whole run, for the schedules.
        flip: mirror cubes left to right, by (seed, sample, epoch).
        perceptual: a trained encoder of these cubes' features, for `loss.perceptual`.
        ema: of the weights that are used; with a half-life of 0 the last ones are.
        monitor: sums what validation shows of spectra; None: nothing.
    """

    USED = ("vqgan.model.", "ema.", "codebook.", "fov_HW")

    def __init__(
        self,
        engine: Engine,
        vqgan: VQGAN,
        codebook: Codebook,
        discriminator: PatchGAN,
        normaliser: CubeNormaliser,
        stream: CubeStream,
        *,
        fov_HW: Tensor,
        dataset: str,
        loss: VQGANLossConfig,
        optimizer: OptimizerConfig,
        total: int,
        flip: bool = True,
        perceptual: FeatureEncoder | None = None,
        ema: EMAConfig = EMAConfig(halflife_samples=0),
        monitor: SpectralMonitor | None = None,
    ) -> None:
        self.engine, self.config, self.optimizer, self.total, self.flip = engine, loss, optimizer, total, flip
        rates: dict[str, Any] = {"lr": optimizer.lr, "betas": (optimizer.beta1, optimizer.beta2), "weight_decay": optimizer.weight_decay}
        self.last_layer_shape = vqgan.last_layer.weight.shape  # ZeRO-3 takes the weight apart
        self.vqgan = engine.add("vqgan", vqgan, **rates)
        self.discriminator = engine.add("discriminator", discriminator, **rates)
        self.module, self.plain_discriminator = vqgan, discriminator
        self.perceptual = perceptual and perceptual.eval().requires_grad_(False).to(engine.device)
        self.ema_config, self.ema = ema, EMA(engine.networks["vqgan"].masters()) if ema.halflife_samples else None
        self.codebook = codebook.to(engine.device)
        if codebook.config.gradient == "rotation":
            library("vector_quantize_pytorch", "vqgan.codebook.gradient=rotation")  # absent, it is told before anything is written
        learned = codebook.learned()
        self.code_map = engine.add("code_map", learned, **rates) if learned is not None else None
        self._map_codes()
        self.normaliser, self.monitor = normaliser.to(engine.device), monitor
        self.stream, self.fov_HW, self.seed = stream, fov_HW, stream.seed
        height, width = (side // vqgan.config.compression for side in stream.shape[1:])
        latent_shape = (vqgan.config.latent_channels, height, width)
        self.reseeding = Reseeding(self.codebook, stream, self._encoded, engine.comm, latent_shape=latent_shape, dataset=dataset)
        self.statistics: Tensor | None = None
        self.latents: list[tuple[np.ndarray, Tensor]] = []
        self.counts_K = torch.zeros(codebook.config.codes, dtype=torch.float64, device=engine.device)

    def losses(self, batch: Batch, samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One micro batch: the loss of each network, and their terms for the log."""
        x_BCHW, fov_BHW = self._prepared(batch)
        quantise, moved = self._quantises(samples), self._moved(batch, samples)
        h_BDHW, index_BHW, trunk_BFHW, rec_BCHW = self.vqgan(x_BCHW, self.codebook, quantise=quantise, moved=moved)
        if moved:
            f, fov = self.module.config.compression, fov_BHW if fov_BHW is None else fov_BHW[:, None].float()
            x_BCHW, fov = (maps if maps is None else moved(maps, f) for maps in (x_BCHW, fov))
            fov_BHW = fov if fov is None else fov[:, 0] > 0.5
            x_BCHW = x_BCHW if fov_BHW is None else x_BCHW * fov_BHW[:, None]
        elif quantise:  # codes are means of latents as they come, not of what lies between them
            self._remember(batch, h_BDHW, index_BHW)
        # outside the field of view both are 0: nothing there is judged, by any term
        rec_BCHW = rec_BCHW.float() if fov_BHW is None else rec_BCHW.float() * fov_BHW[:, None]

        # every judge of the reconstruction sees a leaf, and what it says comes back as a direction: see `last_layer_gradient`
        leaf = rec_BCHW.detach().requires_grad_()
        reconstruction, terms = self._reconstruction(leaf, x_BCHW, fov_BHW)
        (direction,) = torch.autograd.grad(reconstruction, leaf)
        losses: dict[str, Tensor] = {}
        if samples >= self.config.gan_start_samples and self.config.gan:
            losses["discriminator"], real_features, d_terms = self._discriminator(x_BCHW, rec_BCHW, batch.position_B)
            generator, gan_terms = self._generator(leaf, real_features, direction, trunk_BFHW, fov_BHW)
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
        rec_BCHW = self.module(x_BCHW, self.codebook, quantise=quantise).rec_BCHW.float()
        self.module.train()
        rec_BCHW = rec_BCHW if fov_BHW is None else rec_BCHW * fov_BHW[:, None]
        cubes = [slice(b, b + 1) for b in range(len(x_BCHW))]
        loss_B = [self._reconstruction(rec_BCHW[b], x_BCHW[b], None if fov_BHW is None else fov_BHW[b])[0] for b in cubes]
        values = {"loss": torch.stack(loss_B), "l1": (rec_BCHW - x_BCHW).abs().mean((1, 2, 3))}
        if self.monitor is not None:
            original_BCHW, shown_BCHW = self.normaliser.reflectance(x_BCHW), self.normaliser.reflectance(rec_BCHW)
            values |= self.monitor.sums(original_BCHW, shown_BCHW, fov_BHW, batch.labels_BHW)
        return values

    def _quantises(self, samples: int) -> bool:
        """Whether latents pass through the codes by now."""
        return samples // self.stream.epoch_samples >= self.codebook.config.warmup_epochs

    def _reconstruction(self, rec_BCHW: Tensor, x_BCHW: Tensor, fov_BHW: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted reconstruction loss in normalised units, the spectral angle in reflectance; and its terms."""
        l1, gradient = F.l1_loss(rec_BCHW, x_BCHW), gradient_difference(rec_BCHW, x_BCHW)
        angle = spectral_angle_rad(self.normaliser.reflectance(rec_BCHW), self.normaliser.reflectance(x_BCHW), fov_BHW)
        terms = {"loss/l1": l1.detach(), "loss/gradient": gradient.detach(), "loss/spectral_angle_rad": angle.detach()}
        loss = self.config.l1 * l1 + self.config.gradient * gradient + self.config.spectral_angle * angle
        if self.perceptual is not None:
            with torch.no_grad():
                real = self.perceptual.maps(x_BCHW)
            perceptual = perceptual_distance(real, self.perceptual.maps(rec_BCHW))
            loss, terms["loss/perceptual"] = loss + self.config.perceptual * perceptual, perceptual.detach()
        return loss, terms

    def _generator(
        self, leaf_BCHW: Tensor, real_features: list[Tensor], rec_gradient_BCHW: Tensor, trunk_BFHW: Tensor, fov_BHW: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradient of the generator's terms at the reconstruction, under the adaptive weight."""
        with frozen(self.plain_discriminator):
            logits, features = self.plain_discriminator(leaf_BCHW)
            hinge, matching = -logits.mean(), feature_matching(real_features, features)
            (gan_gradient,) = torch.autograd.grad(hinge, leaf_BCHW, retain_graph=True)
            (matching_gradient,) = torch.autograd.grad(matching, leaf_BCHW)
        inside = 1.0 if fov_BHW is None else fov_BHW[:, None].float()  # the mask is part of the way back to the last layer
        at_output = (rec_gradient_BCHW, gan_gradient)
        at_weight = torch.stack([last_layer_gradient(trunk_BFHW, g * inside, self.last_layer_shape) for g in at_output])
        rec_weight, gan_weight = self.engine.comm.all_reduce_sum_(at_weight) / self.engine.world
        weight = adaptive_weight(rec_weight, gan_weight, scale=self.config.gan)
        terms = {"loss/generator": hinge.detach(), "loss/feature_matching": matching.detach(), "gan/adaptive_weight": weight}
        return weight * (gan_gradient + self.config.feature_matching * matching_gradient), terms

    def _discriminator(self, x_BCHW: Tensor, rec_BCHW: Tensor, position_B: np.ndarray) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """Hinge loss on real and reconstructed cubes, through the wrapped discriminator in one call; features of the real ones."""
        judged = [x_BCHW, rec_BCHW.detach().to(x_BCHW)]
        if self.config.r1:
            noise = normal_at(self.seed, position_B, x_BCHW.shape[1:], PENALTY, device=x_BCHW.device)
            judged.append(x_BCHW + PENALTY_SIGMA * noise.to(x_BCHW))
        logits, features = self.discriminator(torch.cat(judged))
        real, fake, *noisy = logits.float().split(len(x_BCHW))
        loss = hinge_discriminator(real, fake)
        terms = {"loss/discriminator": loss.detach(), "gan/logit_real": real.mean().detach(), "gan/logit_fake": fake.mean().detach()}
        if noisy:
            penalty = F.mse_loss(noisy[0], real)
            loss, terms["loss/r1"] = loss + self.config.r1 * penalty, penalty.detach()
        return loss, [feature.detach()[: len(x_BCHW)] for feature in features], terms

    def _moved(self, batch: Batch, samples: int) -> Callable[..., Tensor] | None:
        """What this step does to latents and, with a factor, to their cubes; None where it does nothing."""
        least = -(-self.plain_discriminator.config.least_pixels // self.module.config.compression) if self.config.gan else 1
        return movement(self.seed, batch, samples, share=self.config.equivariance, least=least)

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
        statistics = self.codebook.statistics(h_BDHW, index_BHW)
        self.statistics = statistics if self.statistics is None else self.statistics + statistics
        self.latents.append((batch.position_B, h_BDHW.detach().float()))

    def after_step(self, samples: int, batch: int, *, skipped: bool) -> dict[str, float]:
        """EMA step and revival from the whole global batch; nothing when the step was skipped."""
        statistics, latents, self.statistics, self.latents = self.statistics, self.latents, None, []
        if self.ema and not skipped:
            self.ema.update(decay_at(samples + batch, batch, self.ema_config))
        if skipped or statistics is None:
            return {}
        statistics = self.engine.comm.all_reduce_sum_(statistics)
        self.counts_K += statistics[:, -1]
        self.codebook.update(statistics)
        self._map_codes()
        revived = self.reseeding.revive(latents, samples, batch)
        usage, perplexity = usage_and_perplexity(self.counts_K)
        return {"codes/usage": usage, "codes/perplexity": perplexity, "codes/revived": float(revived)}

    @torch.no_grad()
    def _map_codes(self) -> None:
        """The codes of the present map, where they are learned."""
        if self.code_map is not None:
            self.codebook.codes_KD.copy_(self.code_map(self.codebook.fixed_KD))

    def start_epoch(self, epoch: int) -> dict[str, float]:
        """Usage of the epoch that ended; then, where configured, new codes."""
        ended = {}
        if self.counts_K.sum() > 0:
            usage, perplexity = usage_and_perplexity(self.counts_K)
            ended = {"codes/usage_epoch": usage, "codes/perplexity_epoch": perplexity}
        self.counts_K.zero_()
        return {**ended, **self.reseeding.start_epoch(epoch)}

    def _encoded(self, batch: Batch) -> Tensor:
        """Latents of a batch, as validation would see them."""
        self.module.eval()
        with self.engine.autocast():
            h_BDHW = self.module(self._normalised(batch)[0]).h_BDHW
        self.module.train()
        return h_BDHW

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
        """The averaged weights in the place of those of the last step, where there are any."""
        return in_place(self.ema, self.engine.networks["vqgan"]) if self.ema else contextlib.nullcontext()

    def state(self) -> State:
        """Codebook with its EMA state, the counts of the epoch so far, and the averaged weights."""
        codebook: State = {f"codebook.{k}": v for k, v in self.codebook.state_dict().items()}
        averaged = self.ema.state("ema") if self.ema else {}
        return {**codebook, **averaged, "codebook_counts": self.counts_K, "fov_HW": self.fov_HW.to(torch.uint8)}

    def load(self, read: Reader) -> None:
        """The inverse of `state`."""
        if self.ema:
            self.ema.load(read, "ema")
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
