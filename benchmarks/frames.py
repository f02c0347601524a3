"""Large frames through the autoencoder in stripes, against the whole pass: peak memory, time, and whether a seam is to be seen.

Each pass runs in a process of its own, forked after imports, and memory is what it adds there at its peak, the result counted; on a GPU
all run in this one, and memory is the peak of torch's allocator. `_memory` rows are in MiB, `_vs_whole` in seconds, `_on_host` where
activations are kept off the GPU. `seam_vs_tiles` looks at the difference from the whole pass: how much larger its steps are from row to row
where stripes meet than elsewhere (1: no seam); the other side decodes the same stripes alone, as tiles. Equal means: no value differs by
more than 1e-3 of the frame's deviation (on a GPU 1e-2: its products are TF32).
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rounds import arguments, finish, resident_mib
from torch import Tensor

from ldm.models.config import VQGANConfig
from ldm.models.striped import ROWS, decode_in_stripes, encode_in_stripes
from ldm.models.vqgan import VQGAN

MIB = 1 << 20
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOUND = 1e-2 if DEVICE == "cuda" else 1e-3


@dataclass(frozen=True)
class Pass:
    """What a pass took, and what it gave."""

    seconds: float
    cpu_s: float
    mib: float
    result: Tensor


def measured(run: Callable[[], Tensor], shape: tuple[int, ...]) -> Pass:
    """One pass with a result of this shape."""
    figures, result = torch.zeros(3, dtype=torch.float64).share_memory_(), torch.zeros(shape).share_memory_()
    if DEVICE == "cuda":
        run()
        observed(run, figures, result)
    elif (child := os.fork()) == 0:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
        observed(run, figures, result)
        os._exit(0)
    else:
        assert os.waitpid(child, 0)[1] == 0, "the pass failed"
    return Pass(*figures.tolist(), result)


def observed(run: Callable[[], Tensor], figures: Tensor, result: Tensor) -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / MIB
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what the parent has freed would be used again, and not be counted
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident_mib("VmRSS")
    began, used = time.perf_counter(), time.process_time()
    given = run().to("cpu")
    took, cpu_s = time.perf_counter() - began, time.process_time() - used
    peak = torch.cuda.max_memory_allocated() / MIB if DEVICE == "cuda" else resident_mib("VmHWM")
    figures.copy_(torch.tensor([took, cpu_s, peak - before], dtype=torch.float64))
    result.copy_(given)


def network(channels: int, layers: int) -> VQGAN:
    """With weights that let every layer count."""
    vqgan = VQGAN(VQGANConfig(bands=16, channels=channels, layers=layers, norm_groups=min(32, channels))).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in vqgan.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return vqgan.to(DEVICE)


def seam(difference_BCHW: Tensor) -> float:
    """Mean step from row to row where stripes meet, over that elsewhere."""
    step_H = difference_BCHW.diff(dim=2).abs().mean(dim=(0, 1, 3))
    meets_H = torch.arange(1, len(step_H) + 1) % ROWS == 0
    return float(step_H[meets_H].mean() / step_H[~meets_H].mean())


def row(case: str, ours: float, other: float, unit: str, equal: bool, cpu_ratio: float | None = None) -> dict[str, Any]:
    print(f"{case:28} ours {ours:9.2f} {unit:4} other {other:9.2f} {unit:4} ratio {other / ours:6.2f}   equal {equal}", flush=True)
    return {"case": case, "ours": ours, "other": other, "unit": unit, "ratio": other / ours, "cpu_ratio": cpu_ratio, "equal": equal}


def rows_of(vqgan: VQGAN, side: int) -> list[dict[str, Any]]:
    """Both ways, of frames of this side."""
    f, generator = vqgan.config.compression, torch.Generator().manual_seed(1)
    frame, latent = (1, vqgan.config.bands, side, side), (1, vqgan.config.latent_channels, side // f, side // f)
    z, x = (torch.randn(shape, generator=generator).to(DEVICE) for shape in (latent, frame))
    ways = {
        "decode": (lambda **how: decode_in_stripes(vqgan, z, **how), lambda: vqgan.decode(z), frame),
        "encode": (lambda **how: encode_in_stripes(vqgan, x, **how), lambda: vqgan.encode(x), latent),
    }
    rows = []
    for way, (in_stripes, at_once, shape) in ways.items():
        stripes, whole = measured(in_stripes, shape), measured(at_once, shape)
        largest = float((stripes.result - whole.result).abs().max() / whole.result.std())
        equal, cpu_ratio = largest <= BOUND, whole.cpu_s / stripes.cpu_s
        rows.append(row(f"{way}_{side}_memory", stripes.mib, whole.mib, "MiB", equal))
        rows.append(row(f"{way}_{side}_vs_whole", stripes.seconds, whole.seconds, "s", equal, cpu_ratio))
        print(f"{way}_{side}: largest difference {largest:.1e} of the deviation", flush=True)
        if DEVICE == "cuda":
            hosted = measured(lambda run=in_stripes: run(keep="cpu"), shape)
            rows.append(row(f"{way}_{side}_on_host_memory", hosted.mib, whole.mib, "MiB", torch.equal(hosted.result, stripes.result)))
            rows.append(row(f"{way}_{side}_on_host_vs_whole", hosted.seconds, whole.seconds, "s", equal))
        if way == "decode":
            tiles = measured(lambda: torch.cat([vqgan.decode(part) for part in z.split(ROWS // f, dim=2)], dim=2), shape).result
            rows.append(row(f"seam_vs_tiles_{side}", seam(stripes.result - whole.result), seam(tiles - whole.result), "", equal))
    return rows


@torch.no_grad()
def main() -> None:
    args = arguments(__doc__)
    if DEVICE == "cpu":
        torch.set_num_threads(1)  # threads that this process has would be missing in its children
    sides, vqgan = ((672,), network(16, 1)) if args.quick else ((672, 1344, 2688), network(64 if DEVICE == "cuda" else 32, 2))
    skipped = {} if DEVICE == "cuda" else {"on_host": "this machine has no GPU"}
    finish("frames", [found for side in sides for found in rows_of(vqgan, side)], skipped)


if __name__ == "__main__":
    main()
