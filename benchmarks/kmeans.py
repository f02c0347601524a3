"""K-means with 1024 codes against other libraries from the same start, and the whole of ours against scikit-learn's.

Peers: `pip install -c constraints.txt -e '.[cpu,bench]'` in an environment of its own; those that are absent are named. Equal means: the
inertia of both results over all vectors, taken in float64, within 1e-4 relative; for whole trainings within 1 %, ours from k-means|| with 5
iterations, theirs from k-means++ with 10. Data are latents as a VQ-GAN gives them: clusters of many sizes, and noise. The floor is the
product of all vectors with all codes, block by block, which finds no nearest code. All sides use OMP_NUM_THREADS threads.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable

import numpy as np
import torch
from rounds import arguments, finish, row

from ldm.comm import Alone
from ldm.kmeans.lloyd import kmeans

K, ITERATIONS = 1024, 5
CASES = {"8d": (200_000, 8), "8d_2m": (2_000_000, 8), "32d": (200_000, 32), "256d": (40_000, 256)}


def latents(n: int, d: int) -> np.ndarray:
    rng = np.random.default_rng(d)
    centres, sizes = rng.normal(size=(3000, d)), rng.dirichlet(np.full(3000, 0.3))
    return (centres[rng.choice(3000, n, p=sizes)] + 0.3 * rng.normal(size=(n, d))).astype(np.float32)


def inertia(z: np.ndarray, codes: np.ndarray) -> float:
    """Mean squared distance to the nearest code."""
    total, wide = 0.0, codes.astype(np.float64)
    for block in np.array_split(z.astype(np.float64), max(1, len(z) // 20_000)):
        total += ((block**2).sum(1)[:, None] - 2 * block @ wide.T + (wide**2).sum(1)).min(1).sum()
    return total / len(z)


def ours(z: np.ndarray, start: np.ndarray | None, iterations: int) -> Callable[[], np.ndarray]:
    given = None if start is None else torch.from_numpy(start)
    how = {"k": K, "comm": Alone(), "seed": 0, "reseed": False, "iterations": iterations, "tolerance": -1.0}
    return lambda: kmeans(torch.from_numpy(z), np.arange(len(z)), start_KD=given, **how).codes_KD.numpy()


def sklearn(z: np.ndarray, start: np.ndarray | str, iterations: int) -> Callable[[], np.ndarray]:
    from sklearn.cluster import KMeans

    return lambda: KMeans(K, init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd", random_state=0).fit(z).cluster_centers_


def faiss(z: np.ndarray, start: np.ndarray, iterations: int) -> Callable[[], np.ndarray]:
    import faiss

    def train() -> np.ndarray:
        found = faiss.Kmeans(z.shape[1], K, niter=iterations, max_points_per_centroid=len(z), min_points_per_centroid=1)
        found.train(z, init_centroids=start)
        return found.centroids

    return train


def vq_pytorch(z: np.ndarray, start: np.ndarray, iterations: int) -> Callable[[], np.ndarray]:
    from vector_quantize_pytorch.vector_quantize_pytorch import kmeans as theirs

    samples, given = torch.from_numpy(z)[None], torch.from_numpy(start)[None]
    return lambda: theirs(samples, K, iterations, sample_fn=lambda *_: given.clone())[0][0].numpy()


def floor(z: np.ndarray, start: np.ndarray, iterations: int) -> Callable[[], None]:
    vectors, codes, out = torch.from_numpy(z), torch.from_numpy(start), torch.empty(1024, K)

    def multiply() -> None:
        for _ in range(iterations):
            for block in vectors.split(1024):
                torch.mm(block, codes.T, out=out[: len(block)])

    return multiply


PEERS = {"sklearn": ("sklearn", sklearn), "vq_pytorch": ("vector_quantize_pytorch", vq_pytorch), "faiss": ("faiss", faiss)}


def main() -> None:
    args = arguments(__doc__.partition("\n")[0])
    warnings.filterwarnings("ignore")  # that so few iterations do not converge
    rows, missing = [], {}
    for name, (n, d) in CASES.items():
        if args.quick and name == "8d_2m":
            continue
        z = latents(n, d)
        start = ours(z, None, 1)()  # no code stays empty: libraries differ in where they move one that does
        close = lambda a, b, z=z: abs(inertia(z, a) / inertia(z, b) - 1) <= 1e-4  # noqa: E731
        mine = ours(z, start, ITERATIONS)
        for peer, (package, make) in PEERS.items():
            if importlib.util.find_spec(package) is None:
                missing[f"{name}_vs_{peer}"] = f"{package} is not installed"
            elif peer != "vq_pytorch" or name == "8d":  # it holds all distances at once
                few = 1 if peer == "vq_pytorch" else args.rounds
                rows.append(row(f"{name}_vs_{peer}", mine, make(z, start, ITERATIONS), close, few))
        rows.append(row(f"{name}_vs_gemm_floor", mine, floor(z, start, ITERATIONS), lambda *_: True, args.rounds))
        if importlib.util.find_spec("sklearn") and name in (("8d",) if args.quick else ("8d", "32d", "256d")):
            as_good = lambda a, b, z=z: inertia(z, a) <= 1.01 * inertia(z, b)  # noqa: E731
            rows.append(row(f"{name}_whole_vs_sklearn", ours(z, None, 5), sklearn(z, "k-means++", 10), as_good, 1))
    finish("kmeans", rows, missing)


if __name__ == "__main__":
    main()
