"""Images by number: image i is a function of (seed, i, attempt), the networks and the solver, and of nothing that is made beside it.

Legend: B batch, C band, D latent channel, H W pixels.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_shards.cube import Cube, CubeMeta
from data_shards.errors import InputError
from ldm.checkpoints.segmenter import Segmenter
from ldm.checkpoints.trained import Autoencoder, Denoiser
from ldm.generation.gate import Gate, refused_too_often
from ldm.generation.speed import DECODING, DENOISING, Speed
from ldm.models.config import SamplerConfig, check_codes
from ldm.models.feature_cache import cached
from ldm.models.noise import NOISES
from ldm.models.sampler import scheduler_for, solve

NEW, EARLIER = NOISES
ATTEMPTS = 16  # at one image
PREDICTED = "predicted"  # what the notes of an image say of its labels
Arrays = Callable[[], tuple[np.ndarray, ...]]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A batch of images on the host.

    Attributes:
        stored_BCHW: stored counts; of codes that nobody looks at, the codes.
        kept_BCHW: what a set keeps of them.
        labels_BHW: classes of the pixels, where there is a segmenter.
    """

    z_BDHW: np.ndarray
    stored_BCHW: np.ndarray
    kept_BCHW: np.ndarray
    labels_BHW: np.ndarray | None


def latents_of(
    denoiser: Denoiser,
    ids: np.ndarray,
    *,
    seed: int,
    sampler: SamplerConfig,
    noise: str = NEW,
    attempt: int | np.ndarray = 0,
    guide: Denoiser | None = None,
    guidance: float = 1.0,
    stopped: threading.Event | None = None,
) -> Tensor:
    """Latents of the images with these numbers, at these attempts, (B, D, h, w), in the autoencoder's units.

    Args:
        guide: a worse denoiser, away from which they are led (Karras et al. 2024, "Guiding a diffusion model with a bad version of
            itself", eq. 3; what networks predict is linear in what they take for the image).
        guidance: by how much of the two denoisers' difference, and 1.
        stopped: once set, nobody wants them any more.

    Raises:
        CancelledError: nobody does.
    """
    noise_BDHW = NOISES[noise](seed, ids, denoiser.latent_shape, attempt=attempt, device=denoiser.normaliser.mean_C11.device)
    scheduler = scheduler_for(sampler, denoiser.objective.target)
    net, worse = (cached(of.net, sampler.cache_every, scheduler.order) if of else None for of in (denoiser, guide))

    def denoise(z_BDHW: Tensor, t_B: Tensor) -> Tensor:
        if stopped is not None and stopped.is_set():
            raise CancelledError
        predicted_BDHW = net(z_BDHW, t_B)
        return predicted_BDHW if worse is None else torch.lerp(worse(z_BDHW, t_B), predicted_BDHW, guidance)

    z_BDHW = solve(denoise, noise_BDHW, scheduler, sampler.steps)
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
        payload: what becomes of an image: 'cube', its pixels, or 'codes', of which its decoder makes the very same pixels.
        segmenter: labels the images; of codes none.
        guide, guidance: as latents_of has them.
        straight_through: pixels as earlier versions decoded them (Autoencoder.decode_straight_through).
        speed: adds up what is made.

    Raises:
        InputError: a batch of none; a denoiser trained on another autoencoder's latents, or loaded in another precision; a sampler that
            does not solve its objective; codes of latents that are decoded as they are, or too many of them; a segmenter of codes, or of
            other cubes.
    """

    autoencoder: Autoencoder
    denoiser: Denoiser
    seed: int
    sampler: SamplerConfig
    batch: int = 16
    quantise: bool = True
    gate: Gate | None = None
    noise: str = NEW
    payload: str = "cube"
    segmenter: Segmenter | None = None
    guide: Denoiser | None = None
    guidance: float = 1.0
    straight_through: bool = False
    speed: Speed = field(default_factory=Speed, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"batch {self.batch}", expected="at least 1")
        if self.denoiser.autoencoder != self.autoencoder.digest:
            raise InputError(
                "the denoiser was trained on the latents of another autoencoder",
                expected=f"autoencoder {self.denoiser.autoencoder[:12]}, this one is {self.autoencoder.digest[:12]}",
                mend="retinaforge encode PRESET, then retinaforge train diffusion PRESET, with a fresh run folder",
            )
        if self.denoiser.inference != self.autoencoder.inference:
            raise InputError(f"a denoiser in {self.denoiser.inference}", expected=f"{self.autoencoder.inference}, as the autoencoder")
        scheduler_for(self.sampler, self.denoiser.objective.target)  # refuses
        if self.guide and self.guide.digest == self.denoiser.digest:
            raise InputError("a denoiser that is its own guide", expected="a worse one of the same latents", mend="sample.guide= for none")
        if self.guide and (self.guide.autoencoder, self.guide.objective.target) != (
            self.denoiser.autoencoder,
            self.denoiser.objective.target,
        ):
            raise InputError(
                f"a guide of {self.guide.objective.target!r} on the latents of {self.guide.autoencoder[:12]}",
                expected=f"{self.denoiser.objective.target!r} on those of {self.denoiser.autoencoder[:12]}, as the denoiser that it guides",
                mend="sample.guide= for none",
            )
        if self.payload == "codes":
            check_codes(quantise=self.quantise, codes=len(self.autoencoder.codebook.codes_KD))
        if self.segmenter:
            if self.payload != "cube":
                raise InputError(f"labels of a set of {self.payload}", expected="sample.payload=cube", mend="sample.labels=false")
            kind = {name: self.autoencoder.data[name] for name in ("wavelengths_nm", "scale", "offset")}
            self.segmenter.check("the autoencoder's cubes", **kind)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.denoiser.normaliser.mean_C11.device

    def images(self, ids: Sequence[int]) -> Iterator[Cube]:
        """The images with these numbers, in this order. What the gate refuses is made again, as the next attempt at the same number.

        While a batch is looked at here, and written by who asks for it, the networks are about the next one.

        Raises:
            InputError: an image of which all attempts are refused.
        """
        waiting, order = deque((int(i), 0) for i in ids), deque(map(int, ids))
        refused: dict[int, list[str]] = defaultdict(list)
        passed: dict[int, Cube] = {}
        begun: deque[tuple[list[tuple[int, int]], Future[Callable[[], Made]]]] = deque()
        stopped = threading.Event()
        networks = ThreadPoolExecutor(1, initializer=_like_here, initargs=(torch.get_num_threads(), self.device))
        try:
            while waiting or begun:
                while len(begun) < 2 and (len(waiting) >= self.batch or (waiting and not begun)):  # part of a batch waits for more
                    part = [waiting.popleft() for _ in range(min(self.batch, len(waiting)))]
                    begun.append((part, networks.submit(self._made, part, stopped)))
                part, future = begun.popleft()
                made, again = future.result()(), []
                for b, (i, attempt) in enumerate(part):
                    if self.gate and (cause := self.gate.refuses(made.z_BDHW[b], made.stored_BCHW[b])):
                        refused[i].append(cause)
                        again.append((i, attempt + 1))
                        if len(refused[i]) == ATTEMPTS:
                            raise refused_too_often(i, refused[i])
                        continue
                    notes = {"image": i, "seed": self.seed, "batch": self.batch}
                    if attempt:
                        notes |= {"attempt": attempt, "refused": refused.pop(i)}
                    passed[i] = self._cube(made, b, notes, waits=i != order[0])
                    while order and order[0] in passed:
                        yield passed.pop(order.popleft())
                waiting.extendleft(reversed(again))
        finally:
            stopped.set()
            networks.shutdown(cancel_futures=True)

    def _cube(self, made: Made, b: int, notes: dict[str, Any], *, waits: bool) -> Cube:
        """An image of a batch as a set holds it; a copy of one that waits for those before it, as its batch does not."""
        maps = made.kept_BCHW[b], None if made.labels_BHW is None else made.labels_BHW[b]
        kept_CHW, labels_HW = (x.copy() if waits and x is not None else x for x in maps)
        if labels_HW is not None:
            notes |= {"labels": PREDICTED, "segmenter": self.segmenter.digest}
        return replace(SAMPLE_OF[self.payload](kept_CHW, self.autoencoder, notes), labels_HW=labels_HW)

    def _made(self, part: Sequence[tuple[int, int]], stopped: threading.Event) -> Callable[[], Made]:
        """Latents, stored counts and, where a set keeps them, codes and labels of a batch of (number, attempt). A GPU is still to be
        waited for."""
        id_B, attempt_B = (np.resize(column, self.batch) for column in zip(*part, strict=True))
        with self.speed.phase(DENOISING, self):
            how = {"seed": self.seed, "sampler": self.sampler, "noise": self.noise, "guide": self.guide, "guidance": self.guidance}
            z_BDHW = latents_of(self.denoiser, id_B, **how, attempt=attempt_B, stopped=stopped)
        index_BHW = self.autoencoder.codes_of(z_BDHW) if self.payload == "codes" else None
        stored_BCHW = codes_BCHW = None if index_BHW is None else index_BHW[:, None].to(torch.uint16)
        if index_BHW is None or self.gate:  # else nobody looks at pixels
            with self.speed.phase(DECODING, self):
                stored_BCHW = self._decoded(z_BDHW, index_BHW)
        kept_BCHW = stored_BCHW if codes_BCHW is None else codes_BCHW
        labels = [] if self.segmenter is None else [self.segmenter(stored_BCHW, self.autoencoder.fov_HW)]
        self.speed.made(self.batch)
        arrays = on_host(z_BDHW, stored_BCHW, kept_BCHW, *labels)

        def made() -> Made:
            z_BDHW, stored_BCHW, kept_BCHW, *labels = arrays()
            return Made(z_BDHW=z_BDHW, stored_BCHW=stored_BCHW, kept_BCHW=kept_BCHW, labels_BHW=labels[0] if labels else None)

        return made

    def _decoded(self, z_BDHW: Tensor, index_BHW: Tensor | None) -> Tensor:
        """Stored counts of a batch."""
        if index_BHW is not None:
            return self.autoencoder.decode_codes(index_BHW)
        if self.quantise and self.straight_through:
            return self.autoencoder.decode_straight_through(z_BDHW)
        return self.autoencoder.decode(z_BDHW, quantise=self.quantise)


def _like_here(threads: int, device: torch.device) -> None:
    """Begin a thread that computes as the one that asks for it: torch keeps both for each."""
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)


def on_host(*tensors: Tensor) -> Arrays:
    """What gives these tensors as arrays once a GPU has got so far; meanwhile it may be asked for more."""
    if not tensors[0].is_cuda:
        return lambda: tuple(x.numpy() for x in tensors)
    copies = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) for x in tensors]
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensors[0].device))

    def arrays() -> tuple[np.ndarray, ...]:
        copied.synchronize()
        return tuple(copy.numpy() for copy in copies)

    return arrays


def cube_of(stored_CHW: np.ndarray, autoencoder: Autoencoder, notes: dict[str, Any]) -> Cube:
    """An image as a set holds it."""
    data = autoencoder.data
    meta = CubeMeta(
        key=key_of(notes),
        wavelengths_nm=tuple(data["wavelengths_nm"]),
        scale=data["scale"],
        offset=data["offset"],
        subject_id="synthetic",
        notes=notes,
    )
    return Cube(data_CHW=stored_CHW, meta=meta, fov_HW=autoencoder.shown_HW)


def codes_cube(index_1HW: np.ndarray, autoencoder: Autoencoder, notes: dict[str, Any]) -> Cube:
    """An image as a set of codes holds it. It has no bands: a number stands where a wavelength would, as in latents."""
    notes = {**notes, "autoencoder": autoencoder.digest}
    meta = CubeMeta(key=key_of(notes), wavelengths_nm=(0.0,), scale=1.0, subject_id="synthetic", notes=notes)
    return Cube(data_CHW=index_1HW, meta=meta, codes=True)


def key_of(notes: dict[str, Any]) -> str:
    """Of an image, whose number stands in its notes."""
    return f"{notes['image']:09d}"


SAMPLE_OF = {"cube": cube_of, "codes": codes_cube}
"""By the payload: what a set keeps of an image, and its notes → the sample."""
