"""Fréchet distance against scipy's matrix square root, MS-SSIM against pytorch-msssim called as its manual does.

Equal means: distances to 1e-4 of the larger (the square root of a singular product is itself no better), MS-SSIM to 1e-6.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from pytorch_msssim import ms_ssim
from rounds import arguments, finish, row

from ldm.evaluation.frechet import frechet_distance
from ldm.evaluation.ms_ssim import ms_ssim_of_pairs


def by_sqrtm(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """Heusel et al. 2017, Eq. 6, as public implementations do it."""
    cov_a, cov_b = np.cov(a_ND, rowvar=False), np.cov(b_ND, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    gap = a_ND.mean(0) - b_ND.mean(0)
    return float(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(np.real(root)))


def features(n: int, d: int, seed: int) -> np.ndarray:
    """Correlated features with a spectrum that falls as 1/k, as those of networks do."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) / np.sqrt(d) / np.arange(1, d + 1)[:, None] ** 0.5
    return rng.normal(size=(n, d)) @ mix + seed


def main() -> None:
    args = arguments(__doc__)
    d, large, size, pairs = (512, 2048, 96, 8) if args.quick else (2048, 10000, 672, 2)
    rows = []
    for case, n in (("frechet_small_vs_scipy", 300), ("frechet_large_vs_scipy", large)):
        a_ND, b_ND = features(n, d, 0), features(n, d, 1)
        rows.append(
            row(
                case,
                lambda a=a_ND, b=b_ND: frechet_distance(a, b),
                lambda a=a_ND, b=b_ND: by_sqrtm(a, b),
                lambda x, y: abs(x - y) <= 1e-4 * max(x, y),
                args.rounds,
            )
        )
    generator = torch.Generator().manual_seed(0)
    x_PCHW, y_PCHW = (torch.rand(pairs, 16, size, size, generator=generator) for _ in range(2))
    window = 11 if size > 160 else 5
    rows.append(
        row(
            "ms_ssim_vs_pytorch_msssim",
            lambda: ms_ssim_of_pairs(x_PCHW, y_PCHW, range_=1.0, window=window),
            lambda: ms_ssim(x_PCHW, y_PCHW, data_range=1.0, size_average=False, win_size=window).numpy(),
            lambda x, y: np.allclose(x, y, atol=1e-6),
            args.rounds,
        )
    )
    finish("evaluate", rows)


if __name__ == "__main__":
    main()
