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
from ldm.comm import Communicator
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

    def check(self, *, codes: int, channels: int, dataset: str, where: object) -> None:
        """Raises: InputError: unfinished, for directions alone, of other codes or channels, or from another dataset's latents."""
        if not self.about["done"] or self.about.get("metric") != "euclidean":
            raise InputError(
                f"a codebook that is {'of directions (cosine)' if self.about['done'] else 'not finished'}",
                where=where,
                expected="one that `codebook fit` finished, with --metric euclidean: the VQ-GAN compares by distance",
            )
        found, wanted = (*self.codes_KD.shape, self.about.get("dataset")), (codes, channels, dataset)
        if found != wanted:
            raise InputError(
                f"a codebook of {found[0]} codes of {found[1]} channels, from dataset {str(found[2])[:12]}",
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

    wanted = [(i, at) for i in range(rank, count, world) if len(at := chosen(i))]
    stream, parts, ids = CubeStream(latents, config.split, batch_size=1), [torch.empty(0, d)], [np.empty(0, np.int64)]
    for first in watch(range(0, len(wanted), 16)):
        some = wanted[first : first + 16]
        batch = stream.read(np.array([i for i, _ in some]))
        for (i, at), z_DHW in zip(some, batch.cubes_BCHW, strict=True):
            parts.append(z_DHW.flatten(1).T[torch.from_numpy(at)].float())
            ids.append(i * places + at)
    return torch.cat(parts), np.concatenate(ids)


def fit_codebook(
    latents: Dataset,
    out: Path,
    config: FitConfig,
    comm: Communicator,
    *,
    device: torch.device | str = "cpu",
    watch: Callable[[Any], Any] = iter,
    told: Callable[[int, float], None] = lambda done, inertia: None,
) -> FittedCodebook:
    """Fit and write a codebook; fitted already, it is only read. Killed, the same call goes on from the last iteration. Collective.

    Raises:
        InputError, CorruptData, TryAgain (on every rank, whichever it happened on): cubes in place of latents, another codebook at
            `out`, latents that cannot be read, a full disk, or as ldm.kmeans.lloyd.
    """
    encoded = latents.manifest.source.get("encode")
    origin = {name: str(encoded.get(name, "")) for name in ("dataset", "autoencoder")} if isinstance(encoded, dict) else {}
    source = {**asdict(config), "latents": latents.digest, **origin}
    kept = out.with_name(f".{out.name}.unfinished")
    begun = _together(comm, lambda: _standing(latents, out, kept, source) if comm.rank == 0 else None)
    if begun is not None and begun.about["done"]:
        return begun
    z_ND, ids_N = _together(comm, lambda: drawn(latents, config, comm.rank, comm.world, watch), each=True)
    before = begun.about["made"] if begun else 0

    def keep(done: int, codes_KD: Tensor, inertia: float, converged: bool) -> None:
        told(before + done, inertia)
        about = {**source, "made": before + done, "inertia": inertia, "converged": converged, "done": False}
        state = FittedCodebook(codes_KD, torch.zeros(len(codes_KD), dtype=torch.float64), about)
        _together(comm, lambda: state.write(kept) if comm.rank == 0 else None)

    found = kmeans(
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
    about = {**source, "made": before + found.iterations, "inertia": found.inertia, "done": True}
    fitted = FittedCodebook(found.codes_KD.cpu(), found.counts_K.cpu(), about)

    def publish() -> None:
        fitted.write(out)
        kept.unlink(missing_ok=True)

    _together(comm, lambda: publish() if comm.rank == 0 else None)
    return fitted


def _standing(latents: Dataset, out: Path, kept: Path, source: dict[str, Any]) -> FittedCodebook | None:
    """The codebook at `out` where it is the one asked for, or what a killed fit left of it."""
    if latents.payload != "latent":
        raise InputError(f"a set of {latents.payload}s", where=latents.path, expected="latents", mend="retinaforge encode PRESET")
    latents.check(source["split"])
    if out.exists():
        found = FittedCodebook.read(out)
        if not found.about["done"] or {**found.about, **source} != found.about:
            raise InputError("another codebook stands here", where=out, mend=f"choose another place, or {moved_aside(out)}")
        return found
    if not kept.exists():
        return None
    try:
        found = FittedCodebook.read(kept)
    except CorruptData as error:
        LOGGER.warning("what a killed fit left cannot be used, so it begins anew: %s: %s", kept, error.what)
        return None
    same = {**found.about, **source} == found.about and found.codes_KD.shape == (source["codes"], latents.shape[0])
    return found if same and not found.about["done"] else None


def _together(comm: Communicator, action: Callable[[], Any], *, each: bool = False) -> Any:
    """What `action` gives on rank 0, on every rank (`each`: to each its own). An error of it on any rank ends them all."""
    value, error = None, None
    try:
        value = action()
    except Exception as raised:
        error = raised
    for rank, other in enumerate(comm.gather(error)):
        if other is not None:
            raise error or other from (None if rank == comm.rank else other)
    return value if each else comm.broadcast(value)
