"""A set of codes is the set of pixels, smaller: decoded, as it is read or for good, it is the same to the bit. Real networks, untrained."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import webdataset
from pcodec import standalone

from data_shards.errors import CorruptData, InputError
from data_shards.manifest import BandStats
from data_shards.packing.existing import index_folder
from data_shards.packing.pack import band_stats, packing, recoding
from data_shards.packing.verify import verify
from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from ldm.checkpoints.trained import Autoencoder
from ldm.evaluation.sets import check_comparable
from ldm.generation import images
from ldm.generation.decode import DecodedDataset, DecodedSet
from ldm.generation.encode import LatentSet
from ldm.generation.generate import generate_set
from ldm.generation.images import Generator
from ldm.models.config import CodebookConfig, ObjectiveConfig, SamplerConfig, VQGANConfig
from ldm.models.inference import FP32
from ldm.models.other_codebooks import codebook_from
from ldm.models.vqgan import VQGAN, initialised
from ldm.normalise import CubeNormaliser, LatentNormaliser

BANDS, SIDE, CODES = 3, 16, 60
MODEL = VQGANConfig(bands=BANDS, compression=4, channels=16, layers=1, norm_groups=4, latent_channels=4)
STATS = BandStats(
    split="train",
    mean_C=(0.2,) * BANDS,
    std_C=(0.1,) * BANDS,
    min_C=(0.0,) * BANDS,
    max_C=(1.0,) * BANDS,
    values=100,
    log_mean_C=(4.0,) * BANDS,
    log_std_C=(0.7,) * BANDS,
)
DATA = {"digest": "d" * 64, "shape": [BANDS, SIDE, SIDE], "wavelengths_nm": [500.0, 600.0, 700.0], "scale": 1 / 4095, "offset": 0.0}


def autoencoder_of(digest: str, codebook: CodebookConfig = CodebookConfig(codes=CODES), device: str = "cpu") -> Autoencoder:
    """Untrained, and shaken: a fresh one begins near the identity."""
    vqgan = initialised(lambda: VQGAN(MODEL), 0).eval()
    shaken = torch.Generator().manual_seed(1)
    for weight in vqgan.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=shaken)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return Autoencoder(
        vqgan=vqgan.to(device),
        codebook=codebook_from(codebook, channels=MODEL.latent_channels, seed=0).to(device),
        normaliser=CubeNormaliser(STATS, scale=DATA["scale"], offset=0.0).to(device),
        fov_HW=((y - 7.5) ** 2 + (x - 7.5) ** 2 < 64).to(device),
        data=DATA,
        digest=digest * 64,
    )


class Picky:
    """A gate that refuses a third of all images, by their pixels."""

    bounds = {"rate": 0.3}  # noqa: RUF012

    def refuses(self, latent_DHW: np.ndarray, stored_CHW: np.ndarray) -> str | None:
        return "spectrum" if int(stored_CHW.sum()) % 3 == 0 else None


def generator(payload: str, autoencoder: Autoencoder, **how: object) -> Generator:
    latents = BandStats(split="train", mean_C=(0.0,) * 4, std_C=(1.0,) * 4, min_C=(), max_C=(), values=1)
    denoiser = SimpleNamespace(
        inference=FP32,
        net=None,
        normaliser=LatentNormaliser(latents).to(autoencoder.fov_HW.device),
        objective=ObjectiveConfig(target="flow"),
        latent_shape=(4, SIDE // 4, SIDE // 4),
        autoencoder=autoencoder.digest,
        digest="n" * 64,
        taught_by=None,
    )
    how = {"batch": 4, "gate": Picky(), **how}
    return Generator(autoencoder=autoencoder, denoiser=denoiser, seed=5, sampler=SamplerConfig(steps=2), payload=payload, **how)


@pytest.fixture(autouse=True)
def _noise_as_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "solve", lambda net, noise_BDHW, *how: noise_BDHW)


AUTOENCODER = autoencoder_of("a")


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """A set of a payload, in shards of ten: two are filled up, and the last holds three images."""

    def make(payload: str, count: int = 23, *, name: str = "", autoencoder: Autoencoder = AUTOENCODER, **how: object) -> Path:
        out = tmp_path / (name or payload)
        generate_set(generator(payload, autoencoder, **how), out, count=count, shard=10)
        return out

    return make


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_decoded_set_is_the_set_of_pixels_to_the_byte_attempts_and_half_filled_batches_included(made: Callable, tmp_path: Path) -> None:
    codes = Dataset(made("codes"))
    assert {cube.meta.notes.get("attempt", 0) for cube in codes.cubes("synthetic")} > {0, 1}
    DecodedSet(codes, AUTOENCODER, tmp_path / "decoded").complete()
    assert files(tmp_path / "decoded") == files(made("cube"))
    assert Dataset(tmp_path / "decoded").digest == Dataset(tmp_path / "cube").digest != codes.digest
    assert len(np.unique([cube.data_CHW for cube in Dataset(tmp_path / "cube").cubes("synthetic")])) > 500, "images of something"


@pytest.mark.parametrize("codebook", [{"kind": "simvq", "kmeans": "never"}, {"kind": "fsq", "levels": (3, 5, 4, 3), "codes": 180}])
def test_of_every_kind_of_codebook(made: Callable, tmp_path: Path, codebook: dict) -> None:
    if codebook["kind"] == "fsq":
        pytest.importorskip("vector_quantize_pytorch")
    autoencoder = autoencoder_of("b", CodebookConfig(**{"codes": CODES, "kmeans": "never", **codebook}))
    DecodedSet(Dataset(made("codes", 6, autoencoder=autoencoder)), autoencoder, tmp_path / "decoded").complete()
    assert files(tmp_path / "decoded") == files(made("cube", 6, autoencoder=autoencoder))


def test_without_a_gate_codes_are_kept_without_being_decoded(made: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = files(made("cube", gate=None))
    with monkeypatch.context() as patch:
        patch.setattr(VQGAN, "decode", None)
        codes = Dataset(made("codes", gate=None))
    DecodedSet(codes, AUTOENCODER, tmp_path / "decoded").complete()
    assert files(tmp_path / "decoded") == pixels


def test_what_a_set_of_codes_says(made: Callable) -> None:
    manifest = Dataset(made("codes")).manifest
    assert (manifest.payload, manifest.shape, manifest.dtype, manifest.stats) == ("codes", (1, 4, 4), "uint16", None)
    decoder = manifest.source["decoder"]
    assert decoder["autoencoder"] == manifest.source["sample"]["autoencoder"] == AUTOENCODER.digest
    assert (decoder["shape"], decoder["codes"], decoder["precision"]) == ([BANDS, SIDE, SIDE], CODES, "fp32")
    assert manifest.source["sample"]["batch"] == 4 and decoder["fov"]["pixels"] == int(AUTOENCODER.fov_HW.sum())


def test_stock_webdataset_reads_it(made: Callable) -> None:
    folder = made("codes")
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(23)]
    for sample, cube in zip(samples, Dataset(folder).cubes("synthetic"), strict=True):
        (first,) = struct.unpack("<I", sample["codes.pcodec"][24:28])  # past the payload's table
        index_hw = standalone.simple_decompress(sample["codes.pcodec"][first:]).reshape(4, 4)
        assert np.array_equal(index_hw, cube.data_CHW[0]) and index_hw.max() < CODES
        assert json.loads(sample["json"])["notes"]["autoencoder"] == AUTOENCODER.digest
    assert not [fault for _, faults in verify(folder) for fault in faults]


def test_a_set_of_codes_without_its_manifest_is_indexed_as_one(made: Callable) -> None:
    folder = made("codes")
    before = Dataset(folder).digest
    (folder / "dataset.json").unlink()
    assert index_folder(folder).digest == before and Dataset(folder).payload == "codes"


def test_who_decodes_may_be_killed_and_others_go_on(made: Callable, tmp_path: Path) -> None:
    codes, out = Dataset(made("codes")), tmp_path / "decoded"

    def killed(numbers: Iterable[int]) -> Iterator[int]:
        yield next(iter(numbers))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        DecodedSet(codes, AUTOENCODER, out).complete(killed)
    assert (out / "synthetic-000000.tar").exists() and not (out / "dataset.json").exists()
    (out / "synthetic-000000.index").unlink()  # and in the middle of publishing
    stamp = (out / "synthetic-000000.tar").stat().st_mtime_ns
    DecodedSet(codes, AUTOENCODER, out).complete()
    assert (out / "synthetic-000000.tar").stat().st_mtime_ns == stamp
    assert files(out) == files(made("cube"))
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    DecodedSet(codes, AUTOENCODER, out).complete()
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before, "done: nothing is written"


def test_a_grown_set_is_decoded_on(made: Callable, tmp_path: Path) -> None:
    for count in (13, 23):
        DecodedSet(Dataset(made("codes", count)), AUTOENCODER, tmp_path / "decoded").complete()
    assert files(made("cube")).items() <= files(tmp_path / "decoded").items()


def test_each_shard_is_decoded_in_the_batches_it_was_made_in(made: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made("codes", 10, batch=5)
    codes, seen, inner = Dataset(made("codes", 23, batch=4)), [], Autoencoder.decode_codes
    assert codes.manifest.source["sample"]["batch"] == [4, 5]
    monkeypatch.setattr(Autoencoder, "decode_codes", lambda self, index: seen.append(len(index)) or inner(self, index))
    DecodedSet(codes, AUTOENCODER, tmp_path / "decoded").complete()
    assert seen == [5, 5, 4, 4, 4, 4]
    seen.clear()
    list(DecodedDataset(codes, AUTOENCODER).stream("synthetic", batch_size=23).once())
    assert sorted(seen) == [4, 4, 4, 4, 5, 5]


def test_decoded_as_it_is_read(made: Callable) -> None:
    codes, pixels = DecodedDataset(Dataset(made("codes")), AUTOENCODER), Dataset(made("cube"))
    for name in ("shape", "wavelengths_nm", "scale", "offset", "payload", "splits"):
        assert getattr(codes, name) == getattr(pixels, name)
    assert codes.keys("synthetic") == pixels.keys("synthetic") and codes.subjects("synthetic") == pixels.subjects("synthetic")
    how = {"batch_size": 5, "seed": 3}
    ours, theirs = codes.stream("synthetic", **how), CubeStream(pixels, "synthetic", maps=True, **how)
    pairs = [*zip(ours.once(), theirs.once(), strict=True), *islice(zip(ours.batches(10), theirs.batches(10), strict=True), 7)]
    for a, b in pairs:
        assert (a.keys, a.position, a.subjects) == (b.keys, b.position, b.subjects)
        assert torch.equal(a.cubes_BCHW.int(), b.cubes_BCHW.int()) and torch.equal(a.fov_BHW, b.fov_BHW)
    for i in (0, 9, 22):
        a, b = codes.cube("synthetic", i), pixels.cube("synthetic", i)
        assert a.meta == b.meta and np.array_equal(a.data_CHW, b.data_CHW) and np.array_equal(a.fov_HW, b.fov_HW)


def test_the_codes_of_another_decoder_are_refused_with_both_digests(made: Callable, tmp_path: Path) -> None:
    codes, other = Dataset(made("codes")), autoencoder_of("b")
    for wrong in (lambda: DecodedDataset(codes, other), lambda: DecodedSet(codes, other, tmp_path / "decoded")):
        with pytest.raises(InputError, match=f"{'a' * 64}, this one is {'b' * 64}"):
            wrong()
    assert not (tmp_path / "decoded").exists()
    with pytest.raises(InputError, match="a dataset of cubes"):
        DecodedDataset(Dataset(made("cube")), AUTOENCODER)


def test_an_altered_shard_is_corrupt(made: Callable, tmp_path: Path) -> None:
    folder = made("codes")
    shard = folder / "synthetic-000001.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(b"RFBLOCK2") + 40] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptData, match=r"sample 000000010, member codes\.pcodec"):
        DecodedSet(Dataset(folder), AUTOENCODER, tmp_path / "decoded").complete()
    assert [path.name for path in (tmp_path / "decoded").glob("*.tar")] == ["synthetic-000000.tar"]


def test_what_cannot_be_kept_as_codes_is_refused(made: Callable) -> None:
    with pytest.raises(InputError, match="quantise=false"):
        made("codes", quantise=False)
    with pytest.raises(InputError, match="a codebook of 65537 codes"):
        made("codes", autoencoder=autoencoder_of("b", CodebookConfig(codes=65537, kmeans="never")))
    made("codes", 1, autoencoder=autoencoder_of("b", CodebookConfig(codes=65536, kmeans="never")))


@pytest.mark.parametrize(("stands", "asked"), [("codes", "cube"), ("cube", "codes")])
def test_a_set_keeps_its_payload(made: Callable, stands: str, asked: str) -> None:
    before = files(made(stands, name="set"))
    with pytest.raises(InputError, match=f"another request stands here \\(payload {stands}"):
        made(asked, name="set")
    assert files(made(stands, name="set")) == before


def test_a_set_begun_by_an_earlier_version_goes_on_with_its_rounding(made: Callable, tmp_path: Path) -> None:
    """Its codes were decoded through h + (q - h), which is not q to the last bit."""
    made("cube", 10, name="now")
    folder = made("cube", 10, name="before")
    stated = json.loads((folder / "request.json").read_bytes())
    for key in ("straight_through", "payload"):
        del stated[key]
    for path in folder.iterdir():
        path.unlink()
    (folder / "request.json").write_bytes(json.dumps(stated).encode())
    made("cube", 10, name="before")
    h_BDHW = images.latents_of(generator("cube", AUTOENCODER).denoiser, np.arange(4), seed=5, sampler=SamplerConfig(steps=2))
    q_BDHW, index_BHW = AUTOENCODER.codebook(h_BDHW)
    assert not torch.equal(q_BDHW, AUTOENCODER.codebook.codes_KD[index_BHW].movedim(-1, 1))
    first = Dataset(folder).cube("synthetic", 0)
    assert Dataset(folder).manifest.source["sample"]["straight_through"] is True
    if not first.meta.notes.get("attempt"):
        with torch.no_grad():
            expected_CHW = AUTOENCODER.normaliser.stored(AUTOENCODER.vqgan.decode(q_BDHW))[0].int() * AUTOENCODER.fov_HW
        assert np.array_equal(first.data_CHW, expected_CHW.numpy())
    most = max(
        np.abs(a.data_CHW.astype(int) - b.data_CHW).max()
        for a, b in zip(*(Dataset(tmp_path / name).cubes("synthetic") for name in ("before", "now")), strict=True)
        if a.meta.notes == b.meta.notes
    )
    assert most <= 1


def test_where_cubes_are_expected_codes_are_refused_with_the_command_that_decodes_them(made: Callable, tmp_path: Path) -> None:
    codes = Dataset(made("codes"))
    for refused in (
        lambda: check_comparable(Dataset(made("cube")), codes),
        lambda: LatentSet(codes, AUTOENCODER, tmp_path / "latents"),
        lambda: recoding(codes.path, tmp_path / "out", codec="near", max_error=2),
        lambda: packing(codes.path, tmp_path / "out"),
        lambda: band_stats(codes),
    ):
        with pytest.raises(InputError, match="a dataset of codes") as error:
            refused()
        assert f"retinaforge data decode {codes.path} OUT --autoencoder" in error.value.mend
