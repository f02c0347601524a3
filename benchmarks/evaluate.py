"""Fréchet distance against scipy's matrix square root, MS-SSIM against pytorch-msssim called as its manual does, memory of an evaluation.

Fréchet rows: both sides are told one set and its image under a symmetric positive map T, whose distance is known: x → T x is then the
optimal transport (Brenier), so it is |μ|² + Σ |x - T x|² / (n - 1), a sum without cancellation, for singular covariances too. Equal means:
ours errs by no more than scipy's (both errors, relative, are in the row). MS-SSIM: to 1e-5, for pytorch-msssim works its window out in
float32, which moves its values by some 1e-6; given the exact window it agrees (tests/ldm/evaluation/test_ms_ssim.py). Memory: the peak of
a process that evaluates so many images; the ratio is that of the small set over the large one, 1 where memory is flat.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from pytorch_msssim import ms_ssim
from rounds import arguments, finish, resident_mib, row

from data_shards.cube import Cube, CubeMeta
from data_shards.packing.pack import write_dataset
from data_shards.reading.dataset import Dataset
from ldm.evaluation.evaluate import evaluate
from ldm.evaluation.evaluation_result import EvaluateConfig
from ldm.evaluation.frechet import frechet_distance
from ldm.evaluation.ms_ssim import ms_ssim_of_pairs

SIZE, BANDS = 40, 4  # of the images whose memory is measured


def by_sqrtm(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """Heusel et al. 2017, Eq. 6, as public implementations do it."""
    cov_a, cov_b = np.cov(a_ND, rowvar=False), np.cov(b_ND, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    gap = a_ND.mean(0) - b_ND.mean(0)
    return float(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(np.real(root)))


def features(n: int, d: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Two sets, and their Fréchet distance; correlated, with a spectrum that falls as 1/k, as those of networks do."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(d, d)) / np.sqrt(d) / np.arange(1, d + 1)[:, None] ** 0.5
    a_ND = rng.normal(size=(n, d)) @ mix
    noise = rng.normal(size=(d, d))
    move = 0.1 * (noise + noise.T) / np.sqrt(2 * d)  # eigenvalues within ±0.2
    b_ND = a_ND + a_ND @ move + 0.01
    gap_D, moved_ND = (b_ND - a_ND).mean(0), (b_ND - a_ND) - (b_ND - a_ND).mean(0)
    return a_ND, b_ND, float(gap_D @ gap_D + (moved_ND**2).sum() / (n - 1))


def frechet_row(case: str, n: int, d: int, rounds: int) -> dict[str, Any]:
    """One row, with the errors of both sides."""
    a_ND, b_ND, known = features(n, d)
    errors: dict[str, float] = {}

    def no_worse(ours: float, other: float) -> bool:
        errors.update({"ours_error": abs(ours / known - 1), "other_error": abs(other / known - 1)})
        return errors["ours_error"] <= errors["other_error"]

    found = row(case, lambda: frechet_distance(a_ND, b_ND), lambda: by_sqrtm(a_ND, b_ND), no_worse, rounds)
    print(f"{'relative errors':32} ours {errors['ours_error']:8.1e}     other {errors['other_error']:8.1e}", flush=True)
    return found | errors


def cubes(n: int, name: str) -> Iterator[Cube]:
    for i in range(n):
        data_CHW = np.random.default_rng((len(name), i)).integers(1000, 3000, (BANDS, SIZE, SIZE)).astype(np.uint16)
        nm = tuple(500.0 + 20 * c for c in range(BANDS))
        yield Cube(data_CHW=data_CHW, meta=CubeMeta(key=f"{name}{i:06d}", wavelengths_nm=nm, scale=1 / 4095, subject_id=f"{name}{i // 2}"))


def peak_mib(images: int) -> float:
    """Peak of resident memory of a process that evaluates `images` against as many, and as many again for the floor."""
    with tempfile.TemporaryDirectory() as place:
        real, synthetic = Path(place) / "real", Path(place) / "synthetic"
        write_dataset(real, {"train": cubes(images, "train"), "val": cubes(images, "v")}, shard_mib=1, source={})
        write_dataset(synthetic, {"synthetic": cubes(images, "s")}, shard_mib=1, source={})
        words = [sys.executable, __file__, "--evaluate", str(real), str(synthetic)]
        return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])


def memory_row(small: int, large: int) -> dict[str, Any]:
    of_large, of_small = peak_mib(large), peak_mib(small)
    case = f"memory_of_{large}_vs_{small}"
    print(f"{case:32} ours {of_large:8.0f} MiB other {of_small:8.0f} MiB ratio {of_small / of_large:7.2f}", flush=True)
    return {"case": case, "ours": of_large, "other": of_small, "unit": "MiB", "ratio": of_small / of_large, "equal": True}


def main() -> None:
    args = arguments(__doc__)
    quick = args.quick
    small, large = ((300, 512), (2048, 512)) if quick else ((300, 2048), (5000, 1024))
    rows = [
        frechet_row("frechet_small_vs_scipy", *small, args.rounds),
        frechet_row("frechet_large_vs_scipy", *large, args.rounds),
    ]
    size, pairs = (96, 8) if quick else (672, 2)
    generator = torch.Generator().manual_seed(0)
    x_PCHW, y_PCHW = (torch.rand(pairs, 16, size, size, generator=generator) for _ in range(2))
    window = 11 if size > 160 else 5
    rows.append(
        row(
            "ms_ssim_vs_pytorch_msssim",
            lambda: ms_ssim_of_pairs(x_PCHW, y_PCHW, range_=1.0, window=window),
            lambda: ms_ssim(x_PCHW, y_PCHW, data_range=1.0, size_average=False, win_size=window).numpy(),
            lambda x, y: np.allclose(x, y, rtol=0, atol=1e-5),
            args.rounds,
        )
    )
    rows.append(memory_row(50, 200) if quick else memory_row(200, 2000))
    finish("evaluate", rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--evaluate"]:
        real, synthetic = (Dataset(Path(word)) for word in sys.argv[2:4])
        evaluate(real, synthetic, EvaluateConfig())
        print(resident_mib("VmHWM"))
    else:
        main()
