"""What a GPU may do otherwise than the processor; skipped where there is none.

In all of it the processor is the yardstick: the same batches, neighbours, codes and, within the precision, the same training.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from data_shards.packing.pack import write_dataset
from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from data_shards.shards.codecs import Encoding
from ldm.comm import Alone
from ldm.generation import images
from ldm.generation.decode import DecodedDataset, DecodedSet
from ldm.generation.generate import generate_set
from ldm.generation.images import on_host
from ldm.kmeans.lloyd import kmeans
from ldm.kmeans.nearest import nearest_code
from ldm.models.config import InferenceConfig
from ldm.models.inference import ready
from ldm.models.noise import SAMPLES, normal_at
from ldm.models.striped import decode_in_stripes
from ldm.search import nearest_neighbours
from ldm.search.backends import HOLDS, Backend
from ldm.training.log import read_log
from tests.conftest import made_cube
from tests.ldm.generation.test_decode import autoencoder_of, generator
from tests.ldm.models.test_inference import relative_error, unet, vqgan
from tests.runs import SHARED, configured

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


@pytest.mark.parametrize(("codec", "crop"), [("raw", None), ("tiles", (160, 160)), ("blosc2", None)])
def test_batches_arrive_whole_however_long_the_gpu_takes(tmp_path: Path, codec: str, crop) -> None:
    """Page-locked memory is used again and again, and copies run beside the work: nothing may be written over before it has arrived."""
    pytest.importorskip("blosc2")
    cubes = (made_cube(i, bands=8, size=256) for i in range(24))
    write_dataset(tmp_path / "set", {"train": cubes}, **asdict(Encoding(codec)), shard_mib=4, source={})
    dataset = Dataset(tmp_path / "set")
    here, there = (CubeStream(dataset, "train", batch_size=4, crop=crop, seed=5, maps=True, device=d).batches() for d in ("cpu", "cuda"))
    busy, kept = torch.randn(4096, 4096, device="cuda"), []
    for step in range(60):
        wanted, got = next(here), next(there)
        for _ in range(step % 4 * 8):
            busy = (busy @ busy).clamp(-1, 1)  # the GPU lags behind
        assert got.cubes_BCHW.device.type == "cuda" and got.cubes_BCHW.is_contiguous() and got.keys == wanted.keys
        kept = [*kept[-6:], (wanted.cubes_BCHW.clone(), got.cubes_BCHW, wanted.labels_BHW, got.labels_BHW)]
        for cubes_BCHW, moved_BCHW, labels_BHW, moved_labels_BHW in kept if step % 7 == 6 else ():
            assert torch.equal(cubes_BCHW, moved_BCHW.cpu()) and torch.equal(labels_BHW, moved_labels_BHW.cpu())


def copies_and_others(rows: int = 50000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    reference, query = rng.normal(size=(rows, 96)).astype(np.float32), rng.normal(size=(300, 96)).astype(np.float32)
    query[:50] = reference[:50] + 1e-4 * query[:50]
    return query, reference


def assert_same(found: tuple[np.ndarray, np.ndarray], query: np.ndarray, reference: np.ndarray) -> None:
    expected = nearest_neighbours(query, reference, 3, device="cpu")
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])


@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("tiling", [{}, {"tile": 7001, "block": 129}])
def test_the_search_is_that_of_the_processor_to_the_bit(backend: str, tiling: dict[str, int]) -> None:
    if backend == "faiss" and not pytest.importorskip("faiss").get_num_gpus():
        pytest.skip("this faiss knows no GPU")
    query, reference = copies_and_others()
    assert_same(nearest_neighbours(query, reference, 3, backend=backend, device="cuda", **tiling), query, reference)


def test_a_training_that_allows_tf32_does_not_round_the_search() -> None:
    query, reference = copies_and_others()
    torch.set_float32_matmul_precision("high")
    try:
        assert_same(nearest_neighbours(query, reference, 3, backend="torch", device="cuda"), query, reference)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_a_tile_is_shared_by_devices(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By all there are; and by one that stands in for three."""
    if backend == "faiss" and not pytest.importorskip("faiss").get_num_gpus():
        pytest.skip("this faiss knows no GPU")
    query, reference = copies_and_others()
    for devices in ([f"cuda:{n}" for n in range(torch.cuda.device_count())], ["cuda:0"] * 3):
        monkeypatch.setattr("ldm.search.exact.chosen", lambda backend_, device, devices=devices: Backend(HOLDS[backend], devices))
        found = nearest_neighbours(query, reference, 3)
        monkeypatch.undo()
        assert_same(found, query, reference)


def test_a_gpu_with_too_little_memory_takes_smaller_tiles() -> None:
    query, reference = copies_and_others(1_000_000)  # 366 MiB
    share = 300 * 2**20 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        with pytest.warns(UserWarning, match="too little memory"):
            found = nearest_neighbours(query, reference, 3, backend="torch", device="cuda:0")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_same(found, query, reference)


@pytest.mark.parametrize(
    ("n", "k", "dimension"), [(1, 1, 1), (1000, 7, 3), (5000, 1024, 8), (777, 65, 16), (4000, 100, 33), (300, 50, 200)]
)
def test_the_nearest_code_is_the_nearest(n: int, k: int, dimension: int) -> None:
    z, codes = (torch.randn(m, dimension, generator=torch.Generator().manual_seed(m)) for m in (n, k))
    distance = torch.cdist(z.double(), codes.double())
    found = nearest_code(z.cuda(), codes.cuda()).cpu()
    assert (distance.gather(1, found[:, None])[:, 0] <= distance.min(1).values + 1e-6).all()


def test_codes_are_decoded_to_the_pixels_that_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "solve", lambda net, noise_BDHW, *how: noise_BDHW)
    autoencoder = autoencoder_of("a", device="cuda")
    for payload in ("codes", "cube"):
        generate_set(generator(payload, autoencoder), tmp_path / payload, count=23, shard=10)
    codes, pixels = DecodedDataset(Dataset(tmp_path / "codes"), autoencoder), Dataset(tmp_path / "cube")
    assert DecodedSet(codes.codes, autoencoder, tmp_path / "decoded").complete().digest == pixels.digest
    wanted = CubeStream(pixels, "synthetic", batch_size=5, device="cuda").once()
    for ours, theirs in zip(codes.stream("synthetic", batch_size=5).once(), wanted, strict=True):
        assert ours.cubes_BCHW.device.type == "cuda" and torch.equal(ours.cubes_BCHW.int(), theirs.cubes_BCHW.int())


@pytest.mark.parametrize("dimension", [4, 32, 256])
def test_kmeans_finds_the_same_codes(dimension: int) -> None:
    z = torch.randn(20000, dimension, generator=torch.Generator().manual_seed(1))
    here, there = (kmeans(z.to(d), np.arange(len(z)), k=64, comm=Alone(), seed=0, iterations=8, tolerance=0.0) for d in ("cpu", "cuda"))
    assert there.inertia == pytest.approx(here.inertia, rel=1e-4)
    assert torch.equal(
        there.codes_KD, kmeans(z.cuda(), np.arange(len(z)), k=64, comm=Alone(), seed=0, iterations=8, tolerance=0.0).codes_KD
    )


def train(folder: Path, stage: str, name: str, *settings: str, **environment: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "launch", "train", stage, folder / "tiny.yaml", f"run={folder / name}-{stage}", *settings]
    log = open(folder / f"{name}-{stage}.log", "w")  # noqa: SIM115 - the process writes it
    return subprocess.Popen([str(word) for word in words], stdout=log, stderr=log, env={**os.environ, **environment})


def losses(folder: Path, stage: str, name: str) -> dict[int, float]:
    rows = read_log(folder / f"{name}-{stage}" / stage / "metrics.jsonl")
    return {
        row["samples"]: sum(v for k, v in row.items() if k.startswith("loss/")) for row in rows if any(k.startswith("loss/") for k in row)
    }


WAYS = {
    "ddp-fp32": ("mode=auto", "fp32", 2e-3),
    "zero1-fp32": ("mode=zero1", "fp32", 2e-3),
    "zero2-fp32": ("mode=zero2", "fp32", 2e-3),
    "zero3-fp32": ("ds_config={}/stage3.json", "fp32", 2e-3),
    "ddp-bf16": ("mode=auto", "bf16", 0.05),
    "zero2-bf16": ("mode=zero2", "bf16", 0.05),
    "ddp-fp16": ("mode=auto", "fp16", 0.05),
    "zero2-fp16": ("mode=zero2", "fp16", 0.05),
}


def test_training_is_what_the_processor_trains(packed: Path, tmp_path: Path) -> None:
    """All ways at once: most of the time of each is its start."""
    pytest.importorskip("deepspeed")
    (tmp_path / "stage3.json").write_text('{"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}')
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**configured(**SHARED), "data": {"dataset": str(packed)}}))
    processor = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    assert train(tmp_path, "vqgan", "cpu", **processor).wait(300) == 0, (tmp_path / "cpu-vqgan.log").read_text()[-2000:]
    encode = [sys.executable, "-m", "launch", "encode", str(tmp_path / "tiny.yaml"), f"run={tmp_path}/cpu-vqgan"]
    assert subprocess.run(encode, env={**os.environ, **processor}, capture_output=True, check=False).returncode == 0
    started = {}
    for stage in ("vqgan", "diffusion"):
        for name, (mode, precision, _) in WAYS.items():
            (tmp_path / f"{name}-{stage}").mkdir()
            if stage == "diffusion":
                (tmp_path / f"{name}-{stage}" / "latents").symlink_to(tmp_path / "cpu-vqgan" / "latents")
            settings = f"{stage}.engine.{mode.format(tmp_path)}", f"{stage}.engine.precision={precision}"
            started[name, stage] = train(tmp_path, stage, name, *settings, OMP_NUM_THREADS="1")
    (tmp_path / "cpu-diffusion").mkdir()
    (tmp_path / "cpu-diffusion" / "latents").symlink_to(tmp_path / "cpu-vqgan" / "latents")
    started["cpu", "diffusion"] = train(tmp_path, "diffusion", "cpu", **processor)
    said = []
    for (name, stage), process in started.items():
        if process.wait(300):
            said.append(f"{name} {stage} ended with {process.returncode}: {(tmp_path / f'{name}-{stage}.log').read_text()[-1500:]}")
    for name, stage in started if not said else ():
        wanted, got = losses(tmp_path, stage, "cpu"), losses(tmp_path, stage, name)
        assert wanted and wanted.keys() == got.keys()
        off = max(abs(got[at] - wanted[at]) / abs(wanted[at]) for at in wanted)
        print(f"{name:12} {stage:10} losses within {off:.1e}")
        if name != "cpu" and off > WAYS[name][2]:
            said.append(f"{name} {stage}: losses off by {off:.1e}: {got} in place of {wanted}")
    assert not said, "\n".join(said)


def test_noise_is_that_of_the_processor() -> None:
    here, there = (normal_at(7, np.arange(5, 12), (4, 9, 11), SAMPLES, device=device) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there.cpu(), here, atol=2e-6, rtol=2e-6)


@torch.no_grad()
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-3), ("bf16", 0.02)])
def test_networks_that_are_used_compute_what_the_processor_computes(precision: str, bound: float, compiled: bool) -> None:
    z, t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([999.0, 3.0])
    config = InferenceConfig(precision=precision, compile=compiled)
    denoiser, autoencoder = ready(unet(), config, "cuda"), ready(vqgan(), config, "cuda")
    for _ in range(2):
        assert relative_error(denoiser(z.cuda(), t.cuda()).cpu(), unet().eval()(z, t)) < bound
        assert relative_error(autoencoder.decode(z.cuda()).cpu(), vqgan().eval().decode(z)) < bound


def test_what_a_gpu_makes_ahead_arrives_whole() -> None:
    busy, kept = torch.randn(4096, 4096, device="cuda"), []
    for step in range(30):
        for _ in range(step % 4 * 8):
            busy = (busy @ busy).clamp(-1, 1)  # the GPU lags behind
        made = (torch.arange(1 << 20, device="cuda") * 7 + step).to(torch.uint16)
        kept.append((step, on_host(made, made.float())))
        del made
        while len(kept) > step % 3:
            number, arrays = kept.pop(0)
            stored, floats = arrays()
            assert np.array_equal(stored, (np.arange(1 << 20) * 7 + number).astype(np.uint16)) and np.array_equal(stored, floats)


def test_frames_in_stripes_are_those_of_the_whole_pass() -> None:
    net, z = vqgan().eval().cuda(), torch.randn(1, 4, 40, 24, generator=torch.Generator().manual_seed(0)).cuda()
    with torch.no_grad():
        whole = net.decode(z)
    for keep in (None, "cpu"):
        torch.testing.assert_close(decode_in_stripes(net, z, rows=16, keep=keep), whole, atol=1e-3, rtol=1e-3)
