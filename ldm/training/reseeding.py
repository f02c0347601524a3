"""Codes that are set anew: by a fitted codebook to begin with, by k-means at the border of an epoch, and dead ones after a step.

Legend: B batch, D latent channel, H W latent pixels, K code, N vector.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_shards.reading.batch import Batch
from data_shards.reading.order import hash64
from data_shards.reading.stream import CubeStream
from ldm.comm import Communicator
from ldm.kmeans.fit import FittedCodebook
from ldm.kmeans.lloyd import kmeans, matched
from ldm.kmeans.seeding import MOST_TRIED
from ldm.models.codebook import EMACodebook

LEAST_SAMPLES = 32  # of an epoch, that k-means sees latents of


class Reseeding:
    """Sets the codes anew when the codebook's configuration says so: `start` at the first epoch, `kmeans` once the warm-up is over.

    Args:
        stream: of the training; k-means sees latents of an epoch's first samples.
        encoded: latents of a batch by the network of now. Collective: under ZeRO-3 a call gathers weights from all ranks.
        latent_shape: (D, H, W) of one sample's.
        dataset: digest of what is trained on; a codebook to begin with has to come from it.
    """

    def __init__(
        self,
        codebook: EMACodebook,
        stream: CubeStream,
        encoded: Callable[[Batch], Tensor],
        comm: Communicator,
        *,
        latent_shape: tuple[int, int, int],
        dataset: str,
    ) -> None:
        self.codebook, self.stream, self.encoded, self.comm = codebook, stream, encoded, comm
        self.latent_shape, self.dataset = latent_shape, dataset

    def start_epoch(self, epoch: int) -> dict[str, float]:
        """Collective. What is to be logged of it.

        Raises:
            InputError: `start` does not fit. Else as FittedCodebook.read and kmeans.
        """
        config = self.codebook.config
        if config.start and epoch == 0:
            self._begin_with(config.start)
        first = epoch == config.warmup_epochs
        due = {"never": False, "first": first, "every_epoch": epoch >= config.warmup_epochs}[config.kmeans]
        return self._by_kmeans(epoch, first=first) if due else {}

    def _begin_with(self, path: str) -> None:
        fitted, device = FittedCodebook.read(Path(path)), self.codebook.codes_KD.device
        fitted.check(codes=self.codebook.config.codes, channels=self.latent_shape[0], dataset=self.dataset, where=path)
        self.codebook.reset(fitted.codes_KD.to(device), fitted.counts_K.to(device))

    def _by_kmeans(self, epoch: int, *, first: bool) -> dict[str, float]:
        config = self.codebook.config
        z_ND, ids_N = self._latents(epoch)
        began = time.perf_counter()
        former_KD = None if first and not config.start else self.codebook.codes_KD
        result = kmeans(
            z_ND,
            ids_N,
            k=config.codes,
            comm=self.comm,
            seed=self.stream.seed,
            start_KD=former_KD,
            # codes that were given are kept; of very many, drawing new ones and matching them with the old takes minutes
            reseed=not (first and config.start) and config.codes <= MOST_TRIED,
            iterations=config.kmeans_iterations,
        )
        codes_KD, counts_K = result.codes_KD, result.counts_K
        if result.fresh and former_KD is not None:
            order_K = matched(codes_KD, former_KD, self.comm)
            codes_KD, counts_K = codes_KD[order_K], counts_K[order_K]
        self.codebook.reset(codes_KD, counts_K)
        return {
            "kmeans/inertia": result.inertia,
            "kmeans/iterations": float(result.iterations),
            "kmeans/fresh": float(result.fresh),
            "speed/kmeans_s": time.perf_counter() - began,
        }

    def revive(self, latents: list[tuple[np.ndarray, Tensor]], samples: int, batch: int) -> int:
        """Move dead codes onto latents of the step that was made at so many samples; how many. Collective.

        Args:
            latents: this rank's of the step: global positions, and the latents there.
            batch: the global one.
        """
        dead = self.codebook.dead()
        if len(dead):
            self.codebook.revive(dead, self._drawn(latents, samples, batch, len(dead)))
        return len(dead)

    def _drawn(self, latents: list[tuple[np.ndarray, Tensor]], samples: int, batch: int, n: int) -> Tensor:
        """n latents of the global batch by hash of their place in it: each rank fills in those it holds, then all add."""
        channels, height, width = self.latent_shape
        places = np.uint64(height * width)
        flat_N = hash64(self.stream.seed, samples, np.arange(n), 11) % (np.uint64(batch) * places)
        position_N, place_N = samples + (flat_N // places).astype(np.int64), (flat_N % places).astype(np.int64)
        drawn_ND = torch.zeros(n, channels, device=self.codebook.codes_KD.device)
        for position_B, h_BDHW in latents:
            for position, h_DHW in zip(position_B, h_BDHW, strict=True):
                mine = np.flatnonzero(position_N == position)
                drawn_ND[mine] = h_DHW.flatten(1).T[place_N[mine]]
        return self.comm.all_reduce_sum_(drawn_ND)

    @torch.no_grad()
    def _latents(self, epoch: int) -> tuple[Tensor, np.ndarray]:
        """This rank's share of the latents that k-means sees, and a number for each: places by hash in the epoch's first samples."""
        (channels, height, width), stream, comm, device = self.latent_shape, self.stream, self.comm, self.codebook.codes_KD.device
        wanted, places, first = self.codebook.config.kmeans_vectors, height * width, epoch * stream.epoch_samples
        samples = min(stream.epoch_samples, max(math.ceil(wanted / places), LEAST_SAMPLES))
        of_each = min(places, math.ceil(wanted / samples))
        position_S = first + np.arange(samples)[comm.rank :: comm.world]
        z, ids = [torch.empty(0, channels, device=device)], [np.empty(0, np.int64)]
        # each rank makes as many calls as the one with the most samples; who has none left encodes the first once more
        calls = math.ceil(math.ceil(samples / comm.world) / stream.batch_size)
        for position_B in np.array_split(position_S, calls):
            h_BDHW = self.encoded(stream.read(*stream.place(position_B if len(position_B) else np.array([first]))))
            for position, h_DHW in zip(position_B, h_BDHW, strict=False):
                place_n = np.argsort(hash64(stream.seed, position, np.arange(places), 13))[:of_each]
                z.append(h_DHW.flatten(1).T[torch.from_numpy(place_n).to(device)].float())
                ids.append(position * places + place_n)
        return torch.cat(z), np.concatenate(ids)
