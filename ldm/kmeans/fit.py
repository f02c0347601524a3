"""A codebook from cached latents, by k-means over ranks, and the file that holds it.

The file is safetensors (numbers and text only): `codes`, fp32 (K, D), `counts`, float64 (K,), and a line of JSON about where they
come from.

Legend: N this rank's vectors, D latent channels, K codes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from data_shards import durable
from data_shards.errors import CorruptData, InputError, moved_aside
from data_shards.reading.dataset import Dataset
from data_shards.reading.order import hash64
from data_shards.reading.stream import CubeStream
from ldm.comm import Communicator, on_each, on_rank_0
from ldm.kmeans.lloyd import kmeans

LOGGER = logging.getLogger("retinaforge")
FORMAT = "retinaforge-codebook-1"


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """
    Attributes:
        codes: K.
        split: of the latents.
        vectors: about so many are drawn, over all ranks; they are held in memory, 4 × D bytes each.
        seed: of the draw and of the start.
        iterations, tolerance, metric: as ldm.kmeans.lloyd.
    """

    codes: int = 1024
    split: str = "train"
    vectors: int = 1 << 20
    seed: int = 0
    iterations: int = 50
    tolerance: float = 1e-4
    metric: Literal["euclidean", "cosine"] = "euclidean"

    def __post_init__(self) -> None:
        if self.codes < 1 or self.vectors < 2 * self.codes or self.iterations < 1:
            raise InputError(
                f"codes {self.codes}, vectors {self.vectors}, iterations {self.iterations}",
                expected="at least one code and one iteration, and twice as many vectors as codes: how many are drawn is left to chance",
            )


@dataclass(frozen=True)
class FittedCodebook:
    """`about`: config, digests of latents, dataset and autoencoder, inertia, iterations made, and whether that was all."""

    codes_KD: Tensor
    counts_K: Tensor
    about: dict[str, Any]

    def write(self, path: Path) -> None:
        """Whole, or not at all."""
        about = json.dumps({**self.about, "format": FORMAT}, sort_keys=True)
        durable.write_bytes(
            path, save({"codes": self.codes_KD.cpu().contiguous(), "counts": self.counts_K.cpu().contiguous()}, {"retinaforge": about})
        )

    @classmethod
    def read(cls, path: Path) -> FittedCodebook:
        """Raises: InputError: no such file. CorruptData: damaged, or no codebook."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"codebook cannot be read: {error.strerror}", where=path, mend="retinaforge codebook fit --latents SET --out FILE"
            ) from error
        damaged = {"where": path, "expected": FORMAT, "mend": f"choose another place, or rm {path} and fit it anew"}
        try:
            tensors, head = load(content), int.from_bytes(content[:8], "little")
            about = json.loads(json.loads(content[8 : 8 + head])["__metadata__"]["retinaforge"])
            codes_KD, counts_K = tensors["codes"], tensors["counts"]
            kinds = codes_KD.dtype is torch.float32 and counts_K.dtype is torch.float64 and about["format"] == FORMAT
            sound = kinds and codes_KD.ndim == 2 and counts_K.shape == codes_KD.shape[:1] and isinstance(about.get("made"), int)
            sound = sound and bool(codes_KD.isfinite().all() & counts_K.isfinite().all() & (counts_K >= 0).all())
            sound = sound and isinstance(about.get("inertia"), float) and isinstance(about.get("done"), bool)
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptData(f"not a codebook: {error}", **damaged) from error
        if not sound:
            raise CorruptData("not a codebook, or a damaged one", **damaged)
        return cls(codes_KD, counts_K, about)

    def is_of(self, request: dict[str, Any]) -> bool:
        """Whether this was asked for."""
        return {**self.about, **request} == self.about

    def check(self, *, codes: int, channels: int, dataset: str, where: object) -> None:
        """Raises: InputError: unfinished, for directions alone, of other codes or channels, or from another dataset's latents."""
        if not self.about["done"] or self.about.get("metric") != "euclidean":
            raise InputError(
                f"a codebook that is {'of directions (cosine)' if self.about['done'] else 'not finished'}",
                where=where,
                expected="one that `codebook fit` finished, with --metric euclidean: the VQ-GAN compares by distance",
            )
        (own_codes, own_channels), own_dataset = self.codes_KD.shape, self.about.get("dataset")
        if (own_codes, own_channels, own_dataset) != (codes, channels, dataset):
            raise InputError(
                f"a codebook of {own_codes} codes of {own_channels} channels, from dataset {str(own_dataset)[:12]}",
                where=where,
                expected=f"{codes} codes (vqgan.codebook.codes) of {channels} channels (vqgan.model.latent_channels), "
                f"from dataset {dataset[:12]}",
                mend="retinaforge codebook fit with latents of this dataset, or another vqgan.codebook.start",
            )


def drawn(latents: Dataset, config: FitConfig, rank: int, world: int, watch: Callable[[Any], Any] = iter) -> tuple[Tensor, np.ndarray]:
    """This rank's share of the drawn vectors, (N, D), and a number for each; together the same ones whatever the world is.

    A vector is taken when a hash of (seed, its number) falls below a bound: no rank needs to hear of the others, and only the samples
    that have any are read.
    """
    d, h, w = latents.shape
    places, count = h * w, latents.count(config.split)
    share = config.vectors / (count * places)

    def chosen(i: int) -> np.ndarray:
        ids = i * places + np.arange(places)
        return (
            np.flatnonzero(hash64(config.seed, ids, 0x666974) < np.uint64(min(share, 1 - 2**-53) * 2**64))
            if share < 1
            else np.arange(places)
        )

    wanted = [(i, place_N) for i in range(rank, count, world) if len(place_N := chosen(i))]
    stream, latents_of_chunks, ids = CubeStream(latents, config.split, batch_size=1), [torch.empty(0, d)], [np.empty(0, np.int64)]
    for first in watch(range(0, len(wanted), 16)):
        chunk = wanted[first : first + 16]
        batch = stream.read(np.array([i for i, _ in chunk]))
        for (i, place_N), z_DHW in zip(chunk, batch.cubes_BCHW, strict=True):
            latents_of_chunks.append(z_DHW.flatten(1).T[torch.from_numpy(place_N)].float())
            ids.append(i * places + place_N)
    return torch.cat(latents_of_chunks), np.concatenate(ids)


def fit_codebook(
    latents: Dataset,
    out: Path,
    config: FitConfig,
    comm: Communicator,
    *,
    device: torch.device | str = "cpu",
    watch: Callable[[Any], Any] = iter,
    report: Callable[[int, float], None] = lambda iterations, inertia: None,
) -> FittedCodebook:
    """Fit and write a codebook; fitted already, it is only read. Killed, the same call goes on from the last iteration. Collective.

    Args:
        watch: wraps the steps of reading.
        report: called after each iteration.

    Raises:
        InputError, CorruptData, TryAgain (on every rank, whichever it happened on): cubes in place of latents, another codebook at
            `out`, latents that cannot be read, a full disk, or as ldm.kmeans.lloyd.
    """
    request, unfinished = _request(latents, config), out.with_name(f".{out.name}.unfinished")
    begun = on_rank_0(comm, lambda: _standing(latents, out, unfinished, request))
    if begun is not None and begun.about["done"]:
        return begun
    z_ND, ids_N = on_each(comm, lambda: drawn(latents, config, comm.rank, comm.world, watch))
    before = begun.about["made"] if begun else 0

    def keep(iterations: int, codes_KD: Tensor, inertia: float, converged: bool) -> None:
        report(before + iterations, inertia)
        about = {**request, "made": before + iterations, "inertia": inertia, "converged": converged, "done": False}
        state = FittedCodebook(codes_KD, torch.zeros(len(codes_KD), dtype=torch.float64), about)
        on_rank_0(comm, lambda: state.write(unfinished))

    result = kmeans(
        z_ND.to(device),
        ids_N,
        k=config.codes,
        comm=comm,
        seed=config.seed,
        start_KD=begun.codes_KD.to(device) if begun else None,
        reseed=False,
        previous=begun.about["inertia"] if begun else float("inf"),
        iterations=0 if begun and begun.about.get("converged") else config.iterations - before,
        tolerance=config.tolerance,
        metric=config.metric,
        watch=keep,
    )
    about = {**request, "made": before + result.iterations, "inertia": result.inertia, "done": True}
    fitted = FittedCodebook(result.codes_KD.cpu(), result.counts_K.cpu(), about)

    def publish() -> None:
        fitted.write(out)
        unfinished.unlink(missing_ok=True)

    on_rank_0(comm, publish)
    return fitted


def _request(latents: Dataset, config: FitConfig) -> dict[str, Any]:
    """What a codebook was asked for: it stands in its file."""
    encoded = latents.manifest.source.get("encode")
    origin = {name: str(encoded.get(name, "")) for name in ("dataset", "autoencoder")} if isinstance(encoded, dict) else {}
    return {**asdict(config), "latents": latents.digest, **origin}


def _standing(latents: Dataset, out: Path, unfinished: Path, request: dict[str, Any]) -> FittedCodebook | None:
    """The codebook at `out` where it is the one asked for, or what a killed fit left of it."""
    latents.expect("latent", mend="retinaforge encode PRESET")
    latents.check(request["split"])
    if out.exists():
        codebook = FittedCodebook.read(out)
        if not codebook.about["done"] or not codebook.is_of(request):
            raise InputError("another codebook stands here", where=out, mend=f"choose another place, or {moved_aside(out)}")
        return codebook
    if not unfinished.exists():
        return None
    try:
        codebook = FittedCodebook.read(unfinished)
    except CorruptData as error:
        LOGGER.warning("what a killed fit left cannot be used, so it begins anew: %s: %s", unfinished, error.what)
        return None
    fits = codebook.is_of(request) and codebook.codes_KD.shape == (request["codes"], latents.shape[0])
    return codebook if fits and not codebook.about["done"] else None
