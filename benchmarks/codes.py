"""Sets of codes: bytes a cube, how fast they come back as cubes, and whether these are the pixels that a set of pixels holds.

Untrained networks. For the bytes, codes are drawn with the perplexity that the codes of a trained codebook have at 224×224
(docs/codebook.md); what codes say of their neighbours, which could make them smaller, is left out.
Legend: B batch, C band, D latent channel, H W pixels, h w codes, K code.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rounds import arguments, finish, row
from torch import Tensor, nn

from data_shards.cube import BANDS_16_NM
from data_shards.manifest import BandStats
from data_shards.packing.units import read_unit, write_unit
from data_shards.reading.dataset import Dataset
from data_shards.reading.reader import Shard
from ldm.checkpoints.trained import Autoencoder, Denoiser
from ldm.generation.decode import DecodedDataset, DecodedSet
from ldm.generation.generate import generate_set
from ldm.generation.images import Generator, codes_cube
from ldm.generation.standing import SPLIT
from ldm.models.config import CodebookConfig, ObjectiveConfig, SamplerConfig, VQGANConfig
from ldm.models.other_codebooks import codebook_from
from ldm.models.vqgan import VQGAN, initialised
from ldm.normalise import CubeNormaliser, LatentNormaliser

CODES = 1024
PERPLEXITY = 800  # of 1024 codes in use
PIXEL_BYTES = 672 * 672 * 16 * 2


@dataclass(frozen=True, kw_only=True)
class Size:
    """Attributes:
    side: of an image, in pixels. channels: of the autoencoder. batch: images that it decodes at once. images: of the set.
    """

    side: int
    channels: int
    batch: int
    images: int


QUICK, FULL = Size(side=112, channels=16, batch=4, images=8), Size(side=672, channels=32, batch=2, images=8)
ON_GPU = Size(side=672, channels=128, batch=8, images=256)


class Still(nn.Module):
    """A denoiser of velocity 0: noise stays noise. What is measured comes after it."""

    def forward(self, z_BDHW: Tensor, t_B: Tensor) -> Tensor:
        return torch.zeros_like(z_BDHW)


def untrained(size: Size, device: str) -> tuple[Autoencoder, Denoiser]:
    """A pair, compression 8, 8 latent channels."""
    bands, side = len(BANDS_16_NM), size.side // 8
    config = VQGANConfig(bands=bands, compression=8, latent_channels=8, channels=size.channels, norm_groups=min(32, size.channels))
    flat = {"mean_C": (0.2,) * bands, "std_C": (0.1,) * bands, "min_C": (0.0,) * bands, "max_C": (1.0,) * bands, "values": 1}
    stats = BandStats(split="train", **flat, log_mean_C=(4.0,) * bands, log_std_C=(0.7,) * bands)
    shape = [bands, size.side, size.side]
    autoencoder = Autoencoder(
        vqgan=initialised(lambda: VQGAN(config), 0).eval().to(device),
        codebook=codebook_from(CodebookConfig(codes=CODES), channels=8, seed=0).to(device),
        normaliser=CubeNormaliser(stats, scale=1 / 4095, offset=0.0).to(device),
        fov_HW=torch.ones(size.side, size.side, dtype=torch.bool, device=device),
        data={"digest": "d" * 64, "shape": shape, "wavelengths_nm": list(map(float, BANDS_16_NM)), "scale": 1 / 4095, "offset": 0.0},
        digest="a" * 64,
    )
    latents = BandStats(split="train", mean_C=(0.0,) * 8, std_C=(1.0,) * 8, min_C=(), max_C=(), values=1)
    denoiser = Denoiser(
        net=Still(),
        normaliser=LatentNormaliser(latents).to(device),
        objective=ObjectiveConfig(target="flow"),
        latent_shape=(8, side, side),
        autoencoder=autoencoder.digest,
        digest="n" * 64,
    )
    return autoencoder, denoiser


def used(codes: int, perplexity: float) -> np.ndarray:
    """Shares of codes of that perplexity: log-normal, of the spread that gives it."""
    ranks_K = np.random.default_rng(0).standard_normal(codes)
    least, most = 0.0, 8.0
    for _ in range(50):
        spread = (least + most) / 2
        share_K = np.exp(spread * ranks_K)
        share_K /= share_K.sum()
        least, most = (spread, most) if np.exp(-(share_K * np.log(share_K)).sum()) > perplexity else (least, spread)
    return share_K


def bytes_a_cube(folder: Path, autoencoder: Autoencoder, images: int, share_K: np.ndarray) -> tuple[float, bool]:
    """Of a shard of 84×84 codes with its index, for an image; and whether they come back."""
    rng = np.random.default_rng(1)
    drawn = rng.choice(CODES, (images, 1, 84, 84), p=share_K).astype(np.uint16)
    notes = {"seed": 0, "batch": 8}
    shard = folder / f"{SPLIT}-000000.tar"
    write_unit(shard, SPLIT, (codes_cube(index_1hw, autoencoder, {"image": i, **notes}) for i, index_1hw in enumerate(drawn)))
    stored = Shard(folder, read_unit(shard).entry)
    equal = all(np.array_equal(stored.cube(i).data_CHW, index_1hw) for i, index_1hw in enumerate(drawn))
    return sum(path.stat().st_size for path in folder.iterdir()) / images, equal


def size_row(folder: Path, autoencoder: Autoencoder, images: int) -> dict[str, Any]:
    """Bytes of 672×672×16 pixels over those of 84×84 codes."""
    folder.mkdir()
    found, equal = bytes_a_cube(folder, autoencoder, images, used(CODES, PERPLEXITY))
    print(f"84×84 of {CODES} codes: {found:.0f} bytes a cube with its index; {PIXEL_BYTES / found:.0f} times smaller")
    return {"case": "bytes_vs_raw_pixels", "ours": found, "other": PIXEL_BYTES, "unit": "B", "ratio": PIXEL_BYTES / found, "equal": equal}


def stream_row(codes: DecodedDataset, size: Size, rounds: int) -> dict[str, Any]:
    """A set of codes as it is read, against its decoder alone on the same indices in memory."""
    device = codes.autoencoder.fov_HW.device
    index_Nhw = torch.from_numpy(np.concatenate([cube.data_CHW for cube in codes.codes.cubes(SPLIT)]).astype(np.int64)).to(device)

    def streamed() -> list[Tensor]:
        return [batch.cubes_BCHW.cpu() for batch in codes.stream(SPLIT, batch_size=size.batch).once()]

    def bare() -> list[Tensor]:
        return [codes.autoencoder.decode_codes(part).cpu() for part in index_Nhw.split(size.batch)]

    found = row("stream_vs_bare_decoder", streamed, bare, lambda a, b: all(map(torch.equal, a, b)), rounds)
    print(f"{size.images / found['ours']:.2f} cubes/s of {size.side}×{size.side}×16, {size.channels} channels, on {device.type}")
    return found


def written_row(folder: Path, generator: Generator, size: Size, rounds: int) -> dict[str, Any]:
    """`data decode` against making the set of pixels itself, by a denoiser that costs nothing. The same bytes."""
    codes, shard = Dataset(folder / "codes"), size.images // 2

    def decoded() -> str:
        shutil.rmtree(folder / "decoded", ignore_errors=True)
        return DecodedSet(codes, generator.autoencoder, folder / "decoded").complete().digest

    def pixels() -> str:
        shutil.rmtree(folder / "pixels", ignore_errors=True)
        return generate_set(generator, folder / "pixels", count=size.images, shard=shard).digest

    return row("data_decode_vs_pixels_at_once", decoded, pixels, lambda a, b: a == b, rounds)


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = QUICK if options.quick else ON_GPU if device == "cuda" else FULL
    autoencoder, denoiser = untrained(size, device)
    generator = Generator(autoencoder=autoencoder, denoiser=denoiser, seed=0, sampler=SamplerConfig(steps=1), batch=size.batch)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate_set(replace(generator, payload="codes"), folder / "codes", count=size.images, shard=size.images // 2)
        rows = [
            size_row(folder / "sizes", autoencoder, 64 if options.quick else 1000),
            stream_row(DecodedDataset(Dataset(folder / "codes"), autoencoder), size, options.rounds),
            written_row(folder, generator, size, options.rounds),
        ]
    finish("codes", rows)


if __name__ == "__main__":
    main()
