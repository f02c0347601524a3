"""Images by number: image i is a function of (seed, i, attempt), the networks and the solver, and of nothing that is made beside it.

Legend: B batch, C band, D latent channel, H W pixels.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from data_shards.cube import Cube, CubeMeta
from data_shards.errors import InputError
from ldm.checkpoints.trained import Autoencoder, Denoiser
from ldm.generation.gate import Gate, refused_too_often
from ldm.models.config import SamplerConfig
from ldm.models.feature_cache import cached
from ldm.models.noise import NOISES
from ldm.models.sampler import scheduler_for, solve

NEW, EARLIER = NOISES
ATTEMPTS = 16  # at one image


def latents_of(
    denoiser: Denoiser, ids: np.ndarray, *, seed: int, sampler: SamplerConfig, noise: str = NEW, attempt: int | np.ndarray = 0
) -> Tensor:
    """Latents of the images with these numbers, at these attempts, (B, D, h, w), in the autoencoder's units."""
    noise_BDHW = NOISES[noise](seed, ids, denoiser.latent_shape, attempt=attempt, device=denoiser.normaliser.mean_C11.device)
    scheduler = scheduler_for(sampler, denoiser.objective.target)
    z_BDHW = solve(cached(denoiser.net, sampler.cache_every, scheduler.order), noise_BDHW, scheduler, sampler.steps)
    return denoiser.normaliser.latents(z_BDHW)


@dataclass(frozen=True, kw_only=True)
class Generator:
    """Makes images by number. All that image i depends on stands here.

    Attributes:
        seed: of the noise.
        batch: images at a time. The networks always see so many, the last ones filled up with themselves: how a convolution rounds depends
            on the shape of what it gets, and on nothing else, so an image is the same to the bit whichever others are made with it.
        quantise: decode the nearest codes, as the decoder was trained, or the latents as they are.
        gate: what an image must be; None to look at none.
        noise: a name of ldm.models.noise.NOISES.

    Raises:
        InputError: a batch of none; a denoiser trained on another autoencoder's latents; a sampler that does not solve its objective.
    """

    autoencoder: Autoencoder
    denoiser: Denoiser
    seed: int
    sampler: SamplerConfig
    batch: int = 16
    quantise: bool = True
    gate: Gate | None = None
    noise: str = NEW

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"batch {self.batch}", expected="at least 1")
        if self.denoiser.autoencoder != self.autoencoder.digest:
            raise InputError(
                "the denoiser was trained on the latents of another autoencoder",
                expected=f"autoencoder {self.denoiser.autoencoder[:12]}, this one is {self.autoencoder.digest[:12]}",
                mend="retinaforge encode PRESET, then retinaforge train diffusion PRESET, with a fresh run folder",
            )
        scheduler_for(self.sampler, self.denoiser.objective.target)  # refuses

    def images(self, ids: Sequence[int]) -> Iterator[Cube]:
        """The images with these numbers, in this order. What the gate refuses is made again, as the next attempt at the same number.

        Raises:
            InputError: an image of which all attempts are refused.
        """
        waiting, order = deque((int(i), 0) for i in ids), deque(map(int, ids))
        refused: dict[int, list[str]] = defaultdict(list)
        passed: dict[int, Cube] = {}
        while waiting:
            part = [waiting.popleft() for _ in range(min(self.batch, len(waiting)))]
            id_B, attempt_B = (np.resize(column, self.batch) for column in zip(*part, strict=True))
            z_BDHW = latents_of(self.denoiser, id_B, seed=self.seed, sampler=self.sampler, noise=self.noise, attempt=attempt_B)
            stored_BCHW = self.autoencoder.decode(z_BDHW, quantise=self.quantise).cpu().numpy()
            again = []
            for (i, attempt), z_DHW, stored_CHW in zip(part, z_BDHW.cpu().numpy(), stored_BCHW, strict=False):
                if self.gate and (cause := self.gate.refuses(z_DHW, stored_CHW)):
                    refused[i].append(cause)
                    again.append((i, attempt + 1))
                    if len(refused[i]) == ATTEMPTS:
                        raise refused_too_often(i, refused[i])
                    continue
                notes = {"image": i, "seed": self.seed, "batch": self.batch}
                if attempt:
                    notes |= {"attempt": attempt, "refused": refused.pop(i)}
                passed[i] = cube_of(stored_CHW, self.autoencoder, notes)
            waiting.extendleft(reversed(again))
            while order and order[0] in passed:
                yield passed.pop(order.popleft())


def cube_of(stored_CHW: np.ndarray, autoencoder: Autoencoder, notes: dict[str, Any]) -> Cube:
    """An image as a set holds it."""
    data = autoencoder.data
    meta = CubeMeta(
        key=f"{notes['image']:09d}",
        wavelengths_nm=tuple(data["wavelengths_nm"]),
        scale=data["scale"],
        offset=data["offset"],
        subject_id="synthetic",
        notes=notes,
    )
    return Cube(data_CHW=stored_CHW, meta=meta, fov_HW=autoencoder.fov_HW.cpu().numpy())
