"""Exact nearest neighbours against torch's product and topk over the whole distance matrix, and against the bare product.

Equal means: the same neighbours; the floor computes no neighbours, so there it means that the product agrees with ours at
the neighbours found, to 1e-3. Ours also checks every neighbour in float64, which torch's way does not.

--million: a million queries against 20,000 rows of 64 dimensions and, on a GPU, against 100,000 of 512; the queries are made as they
are read. Every thousandth is a near copy of a row. The floor is the bare product of a fiftieth of the queries, before and after, times
fifty. Equal means there: of a sample of queries the neighbours and distances of brute force in float64, and every copy found.
"""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from rounds import finish, parser, resident_mib, row

from ldm.search import Rows, nearest_neighbours

K = 1
PIECE = 4096  # rows of one seed
COPY_EVERY = 1000
RESET = Path("/proc/self/clear_refs")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--million", action="store_true", help="a million queries, streamed; a minute or more on a core")
    args = options.parse_args()
    if args.million:
        on_gpu = torch.cuda.is_available()
        rows = [million(20_000, 64, "cpu", 0.25), *([million(100_000, 512, "cuda", 4)] if on_gpu else [])]
        finish("audit", rows, {} if on_gpu else {"million_100000x512_cuda_vs_gemm_floor": "no GPU"})
        return
    n, m, d = (1000, 20000, 512) if args.quick else (2000, 100000, 4096)
    rng = np.random.default_rng(0)
    reference_MD = rng.normal(size=(m, d)).astype(np.float32)
    query_ND = rng.normal(size=(n, d)).astype(np.float32)
    query, reference = torch.from_numpy(query_ND), torch.from_numpy(reference_MD)

    product_NM = torch.zeros(n, m)  # memory that is there already: to ask the kernel for it takes longer than many a product

    def topk() -> np.ndarray:
        squared_NM = (query**2).sum(1, keepdim=True) - 2 * query @ reference.T + (reference**2).sum(1)[None]
        return squared_NM.topk(K, dim=1, largest=False).indices.numpy()

    def search() -> tuple[np.ndarray, np.ndarray]:
        return nearest_neighbours(query_ND, reference_MD, K)

    def product_agrees(found: tuple[np.ndarray, np.ndarray], product_NM: torch.Tensor) -> bool:
        near = product_NM.numpy()[np.arange(n), found[1][:, 0]]
        squared_N = (query_ND**2).sum(1) + (reference_MD[found[1][:, 0]] ** 2).sum(1) - 2 * near
        return bool(np.allclose(np.sqrt(squared_N), found[0][:, 0], rtol=1e-3))

    rows = [
        row("search_vs_torch_topk", search, topk, lambda ours, other: np.array_equal(ours[1], other), args.rounds),
        row("search_vs_gemm_floor", search, lambda: torch.mm(query, reference.T, out=product_NM), product_agrees, args.rounds),
    ]
    finish("audit", rows)


class SeededRows(Rows):
    """Normal numbers of a seed, made as they are read; every so many rows a near copy of one of another source."""

    dtype = np.dtype(np.float32)

    def __init__(self, seed: int, rows: int, dimension: int, copied_from: Rows | None = None) -> None:
        self.seed, self.rows, self.dimension, self.copied_from = seed, rows, dimension, copied_from
        self.piece = lru_cache(32)(self._piece)

    def __len__(self) -> int:
        return self.rows

    def original(self, number: int) -> int:
        """Which row a near copy is one of."""
        return number * 7919 % len(self.copied_from)

    def _piece(self, number: int) -> np.ndarray:
        return np.random.default_rng((self.seed, number)).standard_normal((PIECE, self.dimension), np.float32)

    def read(self, start: int, stop: int) -> np.ndarray:
        rows_ND = np.empty((stop - start, self.dimension), np.float32)
        for piece in range(start // PIECE, -(-stop // PIECE)):
            a, b = max(start, piece * PIECE), min(stop, (piece + 1) * PIECE)
            rows_ND[a - start : b - start] = self.piece(piece)[a - piece * PIECE : b - piece * PIECE]
        if self.copied_from is not None:
            for number in range(-(-start // COPY_EVERY) * COPY_EVERY, stop, COPY_EVERY):
                original = self.original(number)
                rows_ND[number - start] = 1e-3 * rows_ND[number - start] + self.copied_from.read(original, original + 1)[0]
        return rows_ND


def million(m: int, d: int, device: str, memory_gib: float) -> dict[str, object]:
    """The row of a million queries against m rows of d dimensions."""
    reference = SeededRows(1, m, d)
    query = SeededRows(2, 1_000_000, d, copied_from=reference)
    few, whole = (torch.from_numpy(rows.read(0, stop)).to(device) for rows, stop in ((query, 20_000), (reference, m)))

    product = torch.zeros(1000, m, device=device)

    def floor() -> tuple[float, float]:
        began, used = time.perf_counter(), time.process_time()
        for part in few.split(1000):
            torch.mm(part, whole.T, out=product)
        if device == "cuda":
            torch.cuda.synchronize()
        return 50 * (time.perf_counter() - began), 50 * (time.process_time() - used)

    nearest_neighbours(query.read(0, 100), reference.read(0, 100), K, device=device)  # libraries are loaded
    floors = [floor(), floor()]
    if RESET.exists():
        RESET.write_text("5")  # the peak is now what is held
    before = resident_mib("VmRSS")
    began, used = time.perf_counter(), time.process_time()
    distance_NK, index_NK = nearest_neighbours(query, reference, K, device=device, memory_gib=memory_gib)
    wall, cpu = time.perf_counter() - began, time.process_time() - used
    peak = resident_mib("VmHWM") - before
    floors += [floor(), floor()]
    other, other_cpu = np.median(floors, axis=0)
    same = all(index_NK[number, 0] == query.original(number) for number in range(0, len(query), COPY_EVERY))
    for number in range(0, len(query), 10_007):
        gap_MD = query.read(number, number + 1).astype(np.float64) - whole.cpu().numpy()
        distance_M = np.sqrt(np.einsum("md,md->m", gap_MD, gap_MD))
        same &= distance_M.argmin() == index_NK[number, 0] and distance_M.min() == distance_NK[number, 0]
    print(f"1,000,000 x {m:,} x {d}: {wall:.1f} s, processor time {cpu:.1f} s; bare products {other:.1f} s, {other_cpu:.1f} s")
    print(f"peak {peak:.0f} MiB above what was there before, 15 of them results; memory_gib {memory_gib:g}; equal {same}", flush=True)
    return {
        "case": f"million_{m}x{d}_{device}_vs_gemm_floor",
        "ours": wall,
        "other": other,
        "unit": "s",
        "ratio": other / wall,
        "cpu_ratio": other_cpu / cpu,
        "peak_mib": peak,
        "equal": bool(same),
    }


if __name__ == "__main__":
    main()
