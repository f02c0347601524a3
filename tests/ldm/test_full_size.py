"""Both models at 672×672×16: forward and backward in one process, with the memory that takes."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from ldm.models.config import CodebookConfig
from ldm.models.config import UNetConfig
from ldm.models.denoiser import UNet
from ldm.models.other_codebooks import codebook_from
from ldm.models.config import VQGANConfig
from ldm.models.vqgan import VQGAN
before = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
if sys.argv[1] == "vqgan":
    model = VQGAN(VQGANConfig(bands=16, compression=8, channels=16, layers=1, norm_groups=8))
    x = torch.rand(1, 16, 672, 672)
    out = model(x, codebook_from(CodebookConfig(), channels=8, seed=0))
    assert out.rec_BCHW.shape == x.shape and out.h_BDHW.shape == (1, 8, 84, 84) and out.index_BHW.shape == (1, 84, 84)
    (out.rec_BCHW - x).abs().mean().backward()
else:
    model = UNet(UNetConfig(latent_channels=8, channels=32, layers=1))
    z = torch.randn(1, 8, 84, 84)
    out = model(z, torch.tensor([500.0]))
    assert out.shape == z.shape
    out.square().mean().backward()
assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
millions = sum(p.numel() for p in model.parameters()) / 1e6
print(f"{sys.argv[1]} at 672x672x16: {millions:.2f} M parameters, peak {peak / 2**20:.2f} GiB, {before / 2**20:.2f} GiB of it imports")
"""


@pytest.mark.parametrize("model", ["vqgan", "unet"])
def test_forward_and_backward_at_full_size(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, model], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    with capsys.disabled():
        print(f"\n{done.stdout.strip()}")
    assert "peak" in done.stdout
