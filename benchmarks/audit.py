"""Exact nearest neighbours against torch's product and topk over the whole distance matrix, and against the bare product.

Equal means: the same neighbours; the floor computes no neighbours, so there it means that the product agrees with ours at
the neighbours found, to 1e-3. Ours also checks every neighbour in float64, which torch's way does not.
"""

from __future__ import annotations

import numpy as np
import torch
from rounds import arguments, finish, row

from ldm.search import nearest_neighbours

K = 1


def main() -> None:
    args = arguments(__doc__)
    n, m, d = (1000, 20000, 512) if args.quick else (2000, 100000, 4096)
    rng = np.random.default_rng(0)
    reference_MD = rng.normal(size=(m, d)).astype(np.float32)
    query_ND = rng.normal(size=(n, d)).astype(np.float32)
    query, reference = torch.from_numpy(query_ND), torch.from_numpy(reference_MD)

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
        row("search_vs_gemm_floor", search, lambda: query @ reference.T, product_agrees, args.rounds),
    ]
    finish("audit", rows)


if __name__ == "__main__":
    main()
