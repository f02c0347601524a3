"""The rough search of one tile in float32: by faiss or torch, on a processor or on GPUs that share the tile's rows.

Legend: B query, R row of a tile, T candidate, D dimension, G group of columns.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_shards.errors import InputError, nearest
from ldm.search import packages
from ldm.speed import out_of_memory

Found = tuple[np.ndarray, np.ndarray]
"""Squared distances (B, T), float32, nearly in order, and row of the tile (B, T), int64."""
Top = Callable[[np.ndarray, int], Found]
"""Finds the T nearest rows of a tile that it holds, T at most their number, for queries (B, D), C-contiguous float32."""

LEAST_ON_GPU = 4096  # rows; a GPU without memory for them is left
SPREAD = 64  # columns of which only the smallest is ranked at first
PRODUCTS = {"cpu": (512, 4096), "cuda": (4096, 1 << 15)}  # of queries with rows, at a time: what a cache holds; what keeps a GPU busy


# -- on one device


def torch_top(query_BD: Tensor, rows_RD: Tensor, norm_R: Tensor, t: int) -> Found:
    """By matrix products, some at a time.

    Args:
        norm_R: |y|² of each row; infinite where a row must not be found.
    """
    found, (rows, columns) = [], PRODUCTS[rows_RD.device.type]
    for part_BD in query_BD.split(rows):
        best = (
            torch.empty((len(part_BD), 0), device=rows_RD.device),
            torch.empty((len(part_BD), 0), dtype=torch.long, device=rows_RD.device),
        )
        for start in range(0, len(rows_RD), columns):
            stop = start + columns
            score_BR = torch.addmm(norm_R[None, start:stop], part_BD, rows_RD[start:stop].T, alpha=-2)  # |x|² does not rank
            values, index = smallest(score_BR, t)
            both = torch.cat([best[0], values], 1), torch.cat([best[1], index + start], 1)
            values, keep = both[0].topk(min(t, both[0].shape[1]), dim=1, largest=False)
            best = values, both[1].gather(1, keep)
        found.append(((best[0] + part_BD.square().sum(1, keepdim=True)).cpu().numpy(), best[1].cpu().numpy()))
    return np.concatenate([values for values, _ in found]), np.concatenate([index for _, index in found])


def smallest(score_BR: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """The t smallest of each row, and where. They lie in those t groups of columns whose smallest are the t smallest: a pass of minima
    and a ranking of few is faster than a ranking of all."""
    groups = score_BR.shape[1] // SPREAD
    if groups <= 2 * t:
        return score_BR.topk(min(t, score_BR.shape[1]), dim=1, largest=False)
    grouped_BSG = score_BR[:, : groups * SPREAD].unflatten(1, (SPREAD, groups))
    near_BT = grouped_BSG.amin(1).topk(t, dim=1, largest=False).indices
    index_BN = (near_BT[:, None] + torch.arange(SPREAD, device=near_BT.device)[None, :, None] * groups).flatten(1)
    rest_R = torch.arange(groups * SPREAD, score_BR.shape[1], device=near_BT.device)
    index_BN = torch.cat([index_BN, rest_R.expand(len(score_BR), -1)], 1)
    values, keep = score_BR.gather(1, index_BN).topk(t, dim=1, largest=False)
    return values, index_BN.gather(1, keep)


@contextlib.contextmanager
def whole_float32() -> Iterator[None]:
    """Inside, products are of float32: a training may have allowed TF32 or bfloat16, whose rounding the search does not reckon with."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast("cpu", enabled=False):  # GPUs are asked from threads of their own, which know of no autocast
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def squared_norms(rows_RD: Tensor) -> Tensor:
    """|y|² of each row, without a second copy of them."""
    return torch.cat([part_RD.square().sum(1) for part_RD in rows_RD.split(LEAST_ON_GPU)])


def torch_holds(rows_RD: np.ndarray, device: str) -> Top:
    """Rows on a device, searched by torch."""
    held_RD = torch.from_numpy(rows_RD).to(device)
    norm_R = squared_norms(held_RD)

    def top(query_BD: np.ndarray, t: int) -> Found:
        with torch.inference_mode():
            return torch_top(torch.from_numpy(query_BD).to(device), held_RD, norm_R, t)

    return top


def faiss_holds(rows_RD: np.ndarray, device: str) -> Top:
    """Rows on a device, searched by faiss."""
    faiss = faiss_module()
    if device == "cpu":
        return lambda query_BD, t: faiss.knn(query_BD, rows_RD, t)
    config = faiss.GpuIndexFlatConfig()
    config.device = torch.device(device).index or 0
    if hasattr(config, "use_cuvs"):
        config.use_cuvs = False  # its kernels round in ways of their own
    resources = faiss.StandardGpuResources()
    index = faiss.GpuIndexFlatL2(resources, rows_RD.shape[1], config)
    index.add(rows_RD)
    return lambda query_BD, t, resources=resources: index.search(query_BD, t)


HOLDS: dict[str, Callable[[np.ndarray, str], Top]] = {"faiss": faiss_holds, "torch": torch_holds}


# -- on several


class Backend:
    """Searches tiles on some devices. Each holds a stretch of a tile's rows; a GPU without memory for it takes smaller ones in turn.

    Attributes:
        holds: what holds rows on a device.
        devices: 'cpu', 'cuda:0' and so on.
        turns: stretches that a device takes one after the other.
    """

    def __init__(self, holds: Callable[[np.ndarray, str], Top], devices: list[str]) -> None:
        self.holds, self.devices, self.turns = holds, devices, 1

    def hold(self, rows_RD: np.ndarray) -> Top:
        """What searches a tile, (R, D), C-contiguous float32; kept on the devices while that lives."""
        return partial(self._top, rows_RD, {})

    def _top(self, rows_RD: np.ndarray, held: dict[int, list[Top]], query_BD: np.ndarray, t: int) -> Found:
        """Args: held: the stretches of the tile that are on the devices, by the number of the device."""
        while self.devices != ["cpu"]:
            try:
                return self._on_devices(rows_RD, held, query_BD, t)
            except RuntimeError as error:
                if not no_memory(error):
                    raise
            held.clear()
            self._give_way(len(rows_RD))
        with whole_float32():
            return self.holds(rows_RD, "cpu")(query_BD, t)

    def _on_devices(self, rows_RD: np.ndarray, held: dict[int, list[Top]], query_BD: np.ndarray, t: int) -> Found:
        if self.turns > 1:
            held.clear()
        count = len(self.devices) * self.turns
        borders = np.linspace(0, len(rows_RD), count + 1).astype(int)
        stretches = [slice(a, b) for a, b in pairwise(borders.tolist())]

        def on(number: int) -> list[Found]:
            """What a device finds in its stretches."""
            device, own = self.devices[number], [each for each in stretches[number :: len(self.devices)] if each.start < each.stop]
            found = []
            for turn, stretch in enumerate(own):
                tops = held.setdefault(number, []) if self.turns == 1 else []
                if turn >= len(tops):
                    tops.append(self.holds(rows_RD[stretch], device))
                values, index = tops[-1](query_BD, min(t, stretch.stop - stretch.start))
                found.append((values, index + stretch.start))
            return found

        with whole_float32(), ThreadPoolExecutor(len(self.devices)) as pool:
            found = [each for of_device in pool.map(on, range(len(self.devices))) for each in of_device]
        values_BN, index_BN = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
        keep_BT = np.argpartition(values_BN, t - 1, axis=1)[:, :t]
        return np.take_along_axis(values_BN, keep_BT, 1), np.take_along_axis(index_BN, keep_BT, 1)

    def _give_way(self, rows: int) -> None:
        """Smaller stretches from now on; the processor where they would be too small."""
        self.turns *= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        share = rows // (len(self.devices) * self.turns)
        if share >= LEAST_ON_GPU:
            warnings.warn(f"search: too little memory on {', '.join(self.devices)}: {share} rows at a time from now on", stacklevel=2)
        else:
            warnings.warn(f"search: too little memory on {', '.join(self.devices)}: on the processor from now on, slower", stacklevel=2)
            self.devices = ["cpu"]


def no_memory(error: RuntimeError) -> bool:
    """Whether a GPU was full: torch has an error for it, faiss a sentence."""
    return out_of_memory(error) or "out of memory" in str(error) or "alloc fail" in str(error)


# -- which


@cache
def faiss_module() -> Any:
    """faiss, made ready.

    Raises:
        InputError: not installed, two packages of it, or one that does not load.
    """
    versions = packages.installed()
    extra = packages.fitting(torch.version.cuda if torch.cuda.is_available() else None)
    mend = f"{packages.mend(versions, extra)}; or the search of torch"
    if len(versions) > 1:
        raise InputError(f"{' and '.join(versions)} are installed, which overwrite each other", expected="one of them", mend=mend)
    try:
        import faiss
    except (ImportError, OSError, RuntimeError) as error:  # faiss-gpu raises the last where a library of CUDA is missing
        name = " ".join(versions) or "faiss"
        raise InputError(f"{name} does not load: {error}", expected="faiss that fits this machine", mend=mend) from error
    # since 1.15 few vectors pass its matrix products by, and take fifteen times as long each
    faiss.cvar.distance_compute_blas_threshold = min(faiss.cvar.distance_compute_blas_threshold, 20)
    return faiss


def devices_of(backend: str, device: str) -> list[str]:
    """Devices that a search may use.

    Raises:
        InputError: a GPU that is asked for and that torch or the backend does not reach.
    """
    faiss = faiss_module() if backend == "faiss" else None
    if device == "cpu":
        return ["cpu"]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if faiss and count:  # built for GPUs it aborts where it is asked of them and there is none; built for processors it has none
        count = min(count, faiss.get_num_gpus())
    reached = [f"cuda:{number}" for number in range(count)]
    if device == "auto":
        return reached or ["cpu"]
    wanted = reached if device == "cuda" else [device]
    if not wanted or not set(wanted) <= set(reached):
        extra = packages.fitting(torch.version.cuda if torch.cuda.is_available() else None)
        raise InputError(
            f"no {device} that {backend} reaches",
            expected=f"one of auto, cpu, {', '.join(reached)}".rstrip(", "),
            mend=packages.mend(packages.installed(), extra) if backend == "faiss" and torch.cuda.is_available() else "device cpu",
        )
    return wanted


def chosen(backend: str = "auto", device: str = "auto") -> Backend:
    """What searches.

    Args:
        backend: 'faiss', 'torch', or 'auto': faiss where it works and has the GPU that torch has, else torch.
        device: 'auto' for all GPUs, or the processor where there are none; 'cpu', 'cuda', or 'cuda:1' for one.

    Raises:
        InputError: an unknown backend; faiss that is asked for and does not work.
    """
    if backend not in ("auto", *HOLDS):
        raise InputError(f"unknown search backend {backend!r}", expected=nearest(backend, ("auto", *HOLDS)))
    if backend != "auto":
        return Backend(HOLDS[backend], devices_of(backend, device))
    try:
        devices = devices_of("faiss", device) if packages.installed() else None
    except InputError as error:
        warnings.warn(f"search: by torch, for {error.what}; {error.mend}", stacklevel=2)
        devices = None
    if devices is None or (devices == ["cpu"] and device == "auto" and torch.cuda.is_available()):
        return Backend(torch_holds, devices_of("torch", device))
    return Backend(faiss_holds, devices)
