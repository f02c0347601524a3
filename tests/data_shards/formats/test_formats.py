"""Every format gives back the values that another library, or the test's own bytes, put into the file."""

from __future__ import annotations

import gzip
import os
import shlex
import struct
import subprocess
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import tifffile
from PIL import Image, ImageOps

from data_shards import formats
from data_shards.errors import CorruptData, InputError
from data_shards.formats import ReadOptions

C, H, W = 5, 6, 7


def cube(dtype: str = "uint16", bands: int = C) -> np.ndarray:
    """(C, H, W) with another value everywhere, so that no turned or mirrored axis goes unnoticed."""
    top = 250 if dtype == "uint8" else 60000
    values = np.random.default_rng(5).permutation(top)[: bands * H * W].reshape(bands, H, W)
    return values.astype(dtype) if np.dtype(dtype).kind != "f" else (values / 65535).astype(dtype)


def write_png_by_hand(path: Path, values_HWS: np.ndarray, colour_type: int, size_claimed: tuple[int, int] | None = None) -> None:
    """A PNG from the specification (ISO/IEC 15948) with zlib alone: Pillow cannot write 16-bit colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = size_claimed or values_HWS.shape[:2]
    depth = values_HWS.dtype.itemsize * 8
    rows = b"".join(b"\0" + row.astype(values_HWS.dtype.newbyteorder(">")).tobytes() for row in values_HWS)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def write_envi(folder: Path, data_CHW: np.ndarray, interleave: str, *, extra: str = "", name: str = "scene", byte_order: int = 0) -> Path:
    """Header and data as ENVI's documentation describes them, written with numpy alone."""
    code = {"uint8": 1, "int16": 2, "float32": 4, "float64": 5, "complex64": 6, "uint16": 12}[data_CHW.dtype.name]
    order = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}[interleave]
    stored = data_CHW.transpose(order).astype(data_CHW.dtype.newbyteorder("<>"[byte_order]))
    (folder / f"{name}.img").write_bytes(b"HEAD" + stored.tobytes())
    header = folder / f"{name}.hdr"
    header.write_text(
        f"ENVI\nsamples = {data_CHW.shape[2]}\nlines = {data_CHW.shape[1]}\nbands = {data_CHW.shape[0]}\nheader offset = 4\n"
        f"file type = ENVI Standard\ndata type = {code}\ninterleave = {interleave}\nbyte order = {byte_order}\n{extra}"
    )
    return header


def write_mat73(path: Path, name: str, array: np.ndarray) -> None:
    """As MATLAB's save('-v7.3') does: a 512-byte block of text, then HDF5 with the axes reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset(name, data=array.T).attrs["MATLAB_class"] = np.bytes_(array.dtype.name)
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


# Photographs


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_colour_is_exact(tmp_path: Path, suffix: str) -> None:
    rgb_CHW = cube("uint8", 3)
    Image.fromarray(rgb_CHW.transpose(1, 2, 0)).save(tmp_path / f"a{suffix}")
    raw = formats.read(tmp_path / f"a{suffix}")
    assert raw.data_CHW.dtype == np.uint8
    assert np.array_equal(raw.data_CHW, rgb_CHW)
    assert raw.wavelengths_nm == (610.0, 545.0, 465.0)
    assert raw.nominal


def test_jpeg_is_what_pillow_decodes_and_near_the_original(tmp_path: Path) -> None:
    smooth_HWS = np.stack([np.linspace(50 + 20 * c, 200, 64 * 64).reshape(64, 64) for c in range(3)], -1).astype(np.uint8)
    Image.fromarray(smooth_HWS).save(tmp_path / "a.jpg", quality=95)
    data_CHW = formats.read(tmp_path / "a.jpg").data_CHW
    assert data_CHW.shape == (3, 64, 64)
    assert np.abs(data_CHW.transpose(1, 2, 0).astype(int) - smooth_HWS).max() <= 4


def test_grey_png_of_16_bits_is_exact(tmp_path: Path) -> None:
    grey_HW = cube("uint16", 1)[0]
    write_png_by_hand(tmp_path / "a.png", grey_HW[..., None], colour_type=0)
    raw = formats.read(tmp_path / "a.png")
    assert raw.data_CHW.dtype == np.uint16
    assert np.array_equal(raw.data_CHW[0], grey_HW)
    assert raw.wavelengths_nm is None


def test_colour_png_of_16_bits_is_refused_and_not_cut_to_8(tmp_path: Path) -> None:
    write_png_by_hand(tmp_path / "a.png", cube("uint16", 3).transpose(1, 2, 0), colour_type=2)
    with pytest.raises(InputError, match="16 bits a channel"):
        formats.read(tmp_path / "a.png")


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    rgb_HWS = cube("uint8", 3).transpose(1, 2, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown upright after a quarter turn clockwise
    Image.fromarray(rgb_HWS).save(tmp_path / "a.png", exif=exif)
    raw = formats.read(tmp_path / "a.png")
    assert np.array_equal(raw.data_CHW, np.rot90(rgb_HWS, -1).transpose(2, 0, 1))
    assert raw.facts == {"exif": "turned upright"}


@pytest.mark.parametrize("tag", range(1, 9))
def test_all_eight_orientation_tags_turn_photographs_and_stacks(tmp_path: Path, tag: int) -> None:
    """What Pillow's own transposition makes of the pixels is the reference."""
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(cube("uint8", 3).transpose(1, 2, 0)).save(tmp_path / "a.png", exif=exif)
    tifffile.imwrite(tmp_path / "s.tif", cube(), photometric="minisblack", extratags=[(274, 3, 1, tag, True)])
    Image.fromarray(cube("uint8", 3).transpose(1, 2, 0)).save(tmp_path / "p.tif", tiffinfo={274: tag}, compression="tiff_lzw")
    for name, stored_CHW in (("a.png", cube("uint8", 3)), ("s.tif", cube()), ("p.tif", cube("uint8", 3))):
        raw = formats.read(tmp_path / name)
        shown = []
        for band_HW in stored_CHW:
            image = Image.fromarray(band_HW)
            image.getexif()[0x0112] = tag
            shown.append(np.array(ImageOps.exif_transpose(image)))
        assert np.array_equal(raw.data_CHW, np.stack(shown)), name
        assert raw.orientation == tag


def test_a_tag_that_means_nothing_turns_nothing(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", cube(), photometric="minisblack", extratags=[(274, 3, 1, 0, True)])
    raw = formats.read(tmp_path / "s.tif")
    assert np.array_equal(raw.data_CHW, cube())
    assert (raw.orientation, raw.facts) == (1, {})


def test_an_uncompressed_tiff_that_pillow_would_scramble_is_refused(tmp_path: Path) -> None:
    palette = Image.fromarray(cube("uint8", 1)[0])
    palette.putpalette(list(range(256)) * 3)
    palette.save(tmp_path / "p.tif", tiffinfo={274: 6})
    with pytest.raises(InputError, match=r"orientation tag 6[\s\S]*p.tif[\s\S]*PNG"):
        formats.read(tmp_path / "p.tif")


def test_bands_that_are_turned_in_different_ways_are_refused(tmp_path: Path) -> None:
    for nm, tag in ((450, 1), (555, 3)):
        tifffile.imwrite(tmp_path / f"{nm}nm.tif", cube()[0], extratags=[(274, 3, 1, tag, True)])
    with pytest.raises(InputError, match=r"different orientation tags: 1 in 450nm.tif, 3 in 555nm.tif"):
        formats.read(tmp_path)


# Netpbm


def write_pnm(path: Path, values_HWS: np.ndarray, top: int, *, plain: bool = False) -> Path:
    """By Netpbm's own description, with numpy alone."""
    height, width, channels = values_HWS.shape
    kind = {(1, True): "P2", (3, True): "P3", (1, False): "P5", (3, False): "P6"}[channels, plain]
    head = f"{kind}\n# made by hand\n{width} {height}\n{top}\n".encode()
    body = " ".join(map(str, values_HWS.ravel())).encode() if plain else values_HWS.astype(">u2" if top > 255 else np.uint8).tobytes()
    path.write_bytes(head + body)
    return path


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("channels", "top"), [(1, 255), (3, 255), (1, 4095), (3, 65535), (1, 3)])
def test_netpbm_values_are_those_of_the_file(tmp_path: Path, channels: int, top: int, plain: bool) -> None:
    values_HWS = np.random.default_rng(1).integers(0, top + 1, (H, W, channels))
    raw = formats.read(write_pnm(tmp_path / ("a.ppm" if channels == 3 else "a.pgm"), values_HWS, top, plain=plain))
    assert np.array_equal(raw.data_CHW, values_HWS.transpose(2, 0, 1))
    assert raw.data_CHW.dtype == (np.uint16 if top > 255 else np.uint8)
    assert [(statement.kind, statement.value) for statement in raw.said] == [("full scale", top)]
    assert (raw.wavelengths_nm is None) == (channels == 1)


def test_netpbm_as_pillow_writes_it(tmp_path: Path) -> None:
    rgb_HWS = cube("uint8", 3).transpose(1, 2, 0)
    Image.fromarray(rgb_HWS).save(tmp_path / "a.ppm")
    assert np.array_equal(formats.read(tmp_path / "a.ppm").data_CHW, cube("uint8", 3))


def test_netpbm_that_is_cut_or_holds_two_images_is_refused(tmp_path: Path) -> None:
    path = write_pnm(tmp_path / "a.pgm", cube("uint8", 1).transpose(1, 2, 0), 255)
    content = path.read_bytes()
    for end in (3, 20, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(CorruptData, match="a.pgm"):
            formats.read(path)
    path.write_bytes(content + content)
    with pytest.raises(InputError, match="more than one image"):
        formats.read(path)


def test_opaque_alpha_is_dropped_and_a_used_one_refused(tmp_path: Path) -> None:
    rgba_HWS = np.concatenate([cube("uint8", 3).transpose(1, 2, 0), np.full((H, W, 1), 255, np.uint8)], -1)
    for suffix in (".png", ".tif"):
        Image.fromarray(rgba_HWS).save(tmp_path / f"a{suffix}")
        assert np.array_equal(formats.read(tmp_path / f"a{suffix}").data_CHW, cube("uint8", 3))
    rgba_HWS[0, 0, 3] = 9
    for suffix in (".png", ".tif"):
        Image.fromarray(rgba_HWS).save(tmp_path / f"b{suffix}")
        with pytest.raises(InputError, match="transparent"):
            formats.read(tmp_path / f"b{suffix}")


@pytest.mark.parametrize("opaque", [1.0, 255.0])
def test_an_alpha_of_floats_is_opaque_where_it_is_one_value_of_at_least_1(tmp_path: Path, opaque: float) -> None:
    rgba_HWS = np.concatenate([cube("float32", 3).transpose(1, 2, 0), np.full((H, W, 1), opaque, np.float32)], -1)
    tifffile.imwrite(tmp_path / "a.tif", rgba_HWS, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(formats.read(tmp_path / "a.tif").data_CHW, cube("float32", 3))
    rgba_HWS[0, 0, 3] = 0.5
    tifffile.imwrite(tmp_path / "b.tif", rgba_HWS, photometric="rgb", extrasamples=["unassalpha"])
    with pytest.raises(InputError, match="transparent"):
        formats.read(tmp_path / "b.tif")


def png_chunk_behind_the_header(path: Path, kind: bytes, body: bytes) -> None:
    content = path.read_bytes()
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(content[:33] + chunk + content[33:])


@pytest.mark.parametrize("kind", ["grey", "grey of 16 bits", "grey of 2 bits", "RGB", "palette", "GIF"])
@pytest.mark.parametrize("used", [True, False])
def test_a_value_that_is_transparent_is_no_measurement(tmp_path: Path, kind: str, used: bool) -> None:
    path, grey_HW = tmp_path / ("a.gif" if kind == "GIF" else "a.png"), np.arange(64, dtype=np.uint8).reshape(8, 8)
    key = 3 if used else 200
    if kind == "grey of 16 bits":
        Image.fromarray(grey_HW.astype(np.uint16) * 300).save(path, transparency=key * 300 % 65536)
    elif kind == "grey of 2 bits":
        key = 1 if used else 2
        write_png_by_hand(path, np.array([[[0b00_01_11_00]], [[0b11_11_01_00]]], np.uint8), 0, (2, 4))
        content = path.read_bytes()
        header = content[16:24] + bytes([2]) + content[25:29]  # depth 2 in place of 8
        body = b"IHDR" + header
        path.write_bytes(content[:12] + body + struct.pack(">I", zlib.crc32(body)) + content[33:])
        png_chunk_behind_the_header(path, b"tRNS", struct.pack(">H", key))
    elif kind == "RGB":
        Image.fromarray(np.dstack([grey_HW] * 3)).save(path, transparency=(key, key, key))
    elif kind == "palette":
        image = Image.fromarray(grey_HW)
        image.putpalette([v for n in range(256) for v in (n, 255 - n, n)])
        image.save(path, transparency=key)
    else:
        Image.fromarray(grey_HW).save(path, transparency=key)
    if used:
        with pytest.raises(InputError, match="transparent pixels"):
            formats.read(path)
    else:
        assert formats.read(path).data_CHW.shape[1:] in ((8, 8), (2, 4))


# TIFF


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits"])
def test_pillow_stacks_of_16_bit_pages_are_bands(tmp_path: Path, compression: str) -> None:
    pages = [Image.fromarray(band_HW) for band_HW in cube()]
    pages[0].save(tmp_path / "s.tif", save_all=True, append_images=pages[1:], compression=compression)
    raw = formats.read(tmp_path / "s.tif")
    assert raw.data_CHW.dtype == np.uint16
    assert np.array_equal(raw.data_CHW, cube())


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("layout", ["pages", "big-endian pages", "samples", "imagej"])
def test_tifffile_layouts_are_exact(tmp_path: Path, dtype: str, layout: str) -> None:
    data_CHW = cube(dtype)
    if layout == "samples":
        tifffile.imwrite(tmp_path / "s.tif", data_CHW.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")
    elif layout == "imagej":
        tifffile.imwrite(tmp_path / "s.tif", data_CHW, imagej=True, photometric="minisblack", metadata={"axes": "CYX"})
    else:
        tifffile.imwrite(tmp_path / "s.tif", data_CHW, photometric="minisblack", byteorder=">" if layout.startswith("big") else "<")
    raw = formats.read(tmp_path / "s.tif")
    assert raw.data_CHW.dtype == dtype
    assert np.array_equal(raw.data_CHW, data_CHW)
    assert raw.wavelengths_nm is None


def test_16_bit_colour_tiff_is_exact(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", cube("uint16", 3).transpose(1, 2, 0), photometric="rgb")
    raw = formats.read(tmp_path / "a.tif")
    assert np.array_equal(raw.data_CHW, cube("uint16", 3))
    assert raw.nominal


def test_tiffs_that_are_not_one_image_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "two.tif") as tiff:
        tiff.write(np.zeros((4, 4), np.uint16))
        tiff.write(np.zeros((8, 8), np.uint16))
    with pytest.raises(
        InputError, match="2 images in one TIFF that are not the pages of one stack: 4x4 uint16 on 1 page, 8x8 uint16 on 1 page"
    ):
        formats.read(tmp_path / "two.tif")
    tifffile.imwrite(tmp_path / "movie.tif", np.zeros((4, 6, 7, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match="rows, columns, and one axis of bands"):
        formats.read(tmp_path / "movie.tif")
    with tifffile.TiffWriter(tmp_path / "turned.tif") as tiff:
        for tag in (1, 6):
            tiff.write(np.zeros((4, 4), np.uint8), extratags=[(274, 3, 1, tag, True)], metadata=None)
    with pytest.raises(InputError, match=r"orientation tags 1, 6[\s\S]*turned.tif"):
        formats.read(tmp_path / "turned.tif")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the cut
@pytest.mark.parametrize("writer", ["pillow", "tifffile"])
def test_a_stack_cut_anywhere_never_loses_pages_in_silence(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "s.tif"
    if writer == "pillow":
        pages = [Image.fromarray(band_HW) for band_HW in cube()]
        pages[0].save(path, save_all=True, append_images=pages[1:])
    else:
        tifffile.imwrite(path, cube(), photometric="minisblack", compression="zlib", metadata=None)
    content = path.read_bytes()
    refused = 0
    for end in range(0, len(content), 23):
        path.write_bytes(content[:end])
        try:
            assert np.array_equal(formats.read(path).data_CHW, cube())
        except CorruptData:
            refused += 1
    assert refused > 20


# ENVI


@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("byte_order", [0, 1])
def test_envi_is_exact_in_every_interleave(tmp_path: Path, interleave: str, dtype: str, byte_order: int) -> None:
    extra = "wavelength units = Nanometers\nwavelength = {\n 400, 500.5,\n 600, 700, 800}\n"
    raw = formats.read(write_envi(tmp_path, cube(dtype), interleave, extra=extra, byte_order=byte_order))
    assert raw.data_CHW.dtype == np.dtype(dtype)
    assert np.array_equal(raw.data_CHW, cube(dtype))
    assert raw.wavelengths_nm == (400.0, 500.5, 600.0, 700.0, 800.0)
    assert raw.facts["interleave"] == interleave


def test_envi_micrometres_scale_factor_and_bad_bands(tmp_path: Path) -> None:
    extra = "Wavelength Units = Micrometers\nwavelength = {0.4, .5, .6, .7, .8}\nreflectance scale factor = 10000\nbbl = {1, 0, 1, 1, 0}\n"
    raw = formats.read(write_envi(tmp_path, cube(), "bip", extra=extra))
    assert raw.wavelengths_nm == pytest.approx((400, 500, 600, 700, 800))
    assert {s.kind: s.numbers(tmp_path, "") for s in raw.said} == {"full scale": (10000,), "bad bands": (1, 0, 1, 1, 0)}


def test_envi_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wavelength units"):
        formats.read(write_envi(tmp_path, cube(), "bsq", extra="wavelength = {0.4, .5, .6, .7, .8}\n", name="unit"))
    header = write_envi(tmp_path, cube(), "bsq", name="short")
    (tmp_path / "short.img").write_bytes((tmp_path / "short.img").read_bytes()[:-1])
    with pytest.raises(CorruptData, match=r"423 bytes[\s\S]*expected: 424 bytes by short.hdr"):
        formats.read(header)
    (tmp_path / "short.img").unlink()
    with pytest.raises(InputError, match="without its data file"):
        formats.read(header)
    with pytest.raises(InputError, match="complex64"):
        formats.read(write_envi(tmp_path, cube().astype(np.complex64), "bsq", name="complex"))
    (tmp_path / "text.hdr").write_text("hello")
    with pytest.raises(InputError, match=r"begins with 'hello'[\s\S]*first line 'ENVI'"):
        formats.read(tmp_path / "text.hdr")


@pytest.mark.parametrize("compression", ["", "file compression = 0\n"])
@pytest.mark.parametrize("noise", [False, True])
def test_gzip_data_that_the_header_does_not_tell_of_are_wrong_input_and_the_advice_reads_them(
    tmp_path: Path, compression: str, noise: bool
) -> None:
    (tmp_path / "a b").mkdir()
    data_CHW = cube() if noise else np.ones((C, H, W), np.uint16)
    header = write_envi(tmp_path / "a b", data_CHW, "bsq", extra=compression)
    data = header.with_suffix(".img")
    data.write_bytes(gzip.compress(data.read_bytes()))
    with pytest.raises(InputError, match=r"the data are gzip[\s\S]*set in the header: file compression = 1") as caught:
        formats.read(header)
    for words in caught.value.mend.partition("unpack the data: ")[2].split(" && "):
        subprocess.run(shlex.split(words), check=True)
    assert np.array_equal(formats.read(header).data_CHW, data_CHW)


def test_data_that_only_begin_like_gzip_are_data(tmp_path: Path) -> None:
    data_CHW = np.frombuffer(b"\x1f\x8b\x08\x00" * 6, np.uint8).reshape(1, 4, 6)
    header = write_envi(tmp_path, data_CHW, "bsq")
    header.with_suffix(".img").write_bytes(b"\x1f\x8b\x08\xff" + data_CHW.tobytes())
    assert np.array_equal(formats.read(header).data_CHW, data_CHW)


# Plain arrays


def test_npy_is_bands_first_unless_stated(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", cube())
    assert np.array_equal(formats.read(tmp_path / "a.npy").data_CHW, cube())
    np.save(tmp_path / "b.npy", np.asfortranarray(cube().transpose(2, 0, 1)))
    assert np.array_equal(formats.read(tmp_path / "b.npy", ReadOptions(axes="WCH")).data_CHW, cube())
    np.save(tmp_path / "c.npy", cube()[0])
    assert np.array_equal(formats.read(tmp_path / "c.npy").data_CHW, cube()[:1])


class Trap:
    """Runs when unpickled."""

    def __reduce__(self) -> tuple:
        return (os.system, ("touch trapped",))


def test_nothing_is_ever_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"a.npy[\s\S]*allow_pickle=False"):
        formats.read(tmp_path / "a.npy")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
def test_hdf5_by_name_by_axes_and_alone(tmp_path: Path, compression: str | None) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("scan/cube", data=cube().transpose(1, 2, 0), compression=compression)
        file["scan/wavelengths"] = 400.0 + 50 * np.arange(C)
        file["scan/name"] = "left eye"
    for variable in ("", "scan/cube", "/scan/cube"):
        raw = formats.read(tmp_path / "a.h5", ReadOptions(variable=variable, axes="HWC"))
        assert np.array_equal(raw.data_CHW, cube())
    assert raw.facts == {"variable": "scan/cube", "axes": "HWC", "band_centres": "scan/wavelengths"}
    assert raw.wavelengths_nm == (400, 450, 500, 550, 600)
    with pytest.raises(InputError, match=r"no numeric array 'cube'[\s\S]*scan/cube 6x7x5"):
        formats.read(tmp_path / "a.h5", ReadOptions(variable="cube"))


def test_hdf5_data_kept_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(2 * C * H * W))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("cube", shape=(C, H, W), dtype="u2", external=[(str(tmp_path / "secret.bin"), 0, 2 * C * H * W)])
    with pytest.raises(InputError, match="kept in another file"):
        formats.read(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["cube"] = h5py.ExternalLink(str(tmp_path / "a.h5"), "cube")
    with pytest.raises(InputError, match="no array of numbers"):
        formats.read(tmp_path / "b.h5")


def test_hdf5_filters_that_are_not_installed_are_named(tmp_path: Path) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((C, H, W))
    plan.set_filter(32999, h5py.h5z.FLAG_OPTIONAL)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        space = h5py.h5s.create_simple((C, H, W))
        h5py.h5d.create(file.id, b"cube", h5py.h5t.NATIVE_UINT16, space, plan).write_direct_chunk((0, 0, 0), cube().tobytes(), 0)
    with pytest.raises(InputError, match=r"filter 32999[\s\S]*a.h5[\s\S]*h5repack"):
        formats.read(tmp_path / "a.h5")


def test_matlab_5_and_7_3_agree(tmp_path: Path) -> None:
    as_matlab_sees_it_HWC = cube().transpose(1, 2, 0)
    scipy.io.savemat(
        tmp_path / "v5.mat", {"Y": as_matlab_sees_it_HWC, "name": "left", "parts": np.array([{"a": 1}], dtype=object)}, do_compression=True
    )
    write_mat73(tmp_path / "v73.mat", "Y", as_matlab_sees_it_HWC)
    for name, version in (("v5.mat", "v5"), ("v73.mat", "v7.3")):
        raw = formats.read(tmp_path / name)
        assert np.array_equal(raw.data_CHW, cube())
        assert raw.facts == {"variable": "Y", "matlab": version, "axes": "HWC"}
        assert np.array_equal(formats.read(tmp_path / name, ReadOptions(axes="WHC")).data_CHW, cube().transpose(0, 2, 1))


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("axes", ["CP", "PC"])
@pytest.mark.parametrize("writer", ["v5", "v7.3", "npy"])
def test_matrices_of_spectra(tmp_path: Path, order: str, axes: str, writer: str) -> None:
    matrix_CP = np.stack([band_HW.ravel("C" if order == "rows" else "F") for band_HW in cube()])
    matrix = matrix_CP if axes == "CP" else matrix_CP.T
    path = tmp_path / ("a.npy" if writer == "npy" else "a.mat")
    if writer == "npy":
        np.save(path, matrix)
    elif writer == "v5":
        scipy.io.savemat(path, {"Y": matrix})
    else:
        write_mat73(path, "Y", matrix)
    for stated in (axes, ""):
        raw = formats.read(path, ReadOptions(axes=stated, reshape_HW=(H, W), pixel_order=order))
        assert np.array_equal(raw.data_CHW, cube())


def test_options_that_would_go_unheard_are_refused(tmp_path: Path) -> None:
    Image.fromarray(cube("uint8", 3).transpose(1, 2, 0)).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", cube())
    with pytest.raises(InputError, match=r"--axes means nothing for a .png file[\s\S]*a.png"):
        formats.read(tmp_path / "a.png", ReadOptions(axes="HWC"))
    with pytest.raises(InputError, match=r"--variable means nothing for a .npy file"):
        formats.read(tmp_path / "a.npy", ReadOptions(variable="Y"))
    with pytest.raises(InputError, match=r"--pixel-order without --reshape"):
        formats.read(tmp_path / "a.npy", ReadOptions(pixel_order="rows"))


def test_matrices_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((C, H * W), np.uint16))
    with pytest.raises(InputError, match=r"order of the pixels[\s\S]*--pixel-order columns"):
        formats.read(tmp_path / "a.npy", ReadOptions(reshape_HW=(H, W)))
    with pytest.raises(InputError, match="does not fit --reshape 6x8"):
        formats.read(tmp_path / "a.npy", ReadOptions(reshape_HW=(6, 8), pixel_order="rows"))
    np.save(tmp_path / "b.npy", np.zeros((4, 5, 6, 7), np.uint16))
    with pytest.raises(InputError, match=r"shape \(4, 5, 6, 7\) with axes 'not known'[\s\S]*--axes HWC"):
        formats.read(tmp_path / "b.npy")
    np.save(tmp_path / "d.npy", np.zeros((4, 5, 6), "datetime64[s]"))
    with pytest.raises(InputError, match="datetime64"):
        formats.read(tmp_path / "d.npy")


def test_a_folder_of_single_bands_sorted_by_wavelength(tmp_path: Path) -> None:
    for nm, band_HW in zip((905, 450, 555, 640.5, 1000), cube(), strict=True):
        Image.fromarray(band_HW).save(tmp_path / f"eye1_{str(nm).replace('.', 'p')}nm.tif")
    raw = formats.read(tmp_path)
    assert raw.wavelengths_nm == (450.0, 555.0, 640.5, 905.0, 1000.0)
    assert np.array_equal(raw.data_CHW, cube()[[1, 2, 3, 0, 4]])
    Image.fromarray(cube()[0]).save(tmp_path / "copy_555nm.tif")
    with pytest.raises(InputError, match="two images of 555 nm"):
        formats.read(tmp_path)


def test_a_number_with_more_digits_is_no_wavelength(tmp_path: Path) -> None:
    Image.fromarray(cube()[0]).save(tmp_path / "p20211555nm.tif")
    with pytest.raises(InputError, match=r"0 wavelengths in the name 'p20211555nm.tif'[\s\S]*apart from other digits"):
        formats.read(tmp_path)


def test_what_systems_leave_beside_bands_is_no_band(tmp_path: Path) -> None:
    Image.fromarray(cube()[0]).save(tmp_path / "eye_555nm.tif")
    (tmp_path / "._eye_555nm.tif").write_bytes(b"\0\x05\x16\x07 a Mac's attributes")
    (tmp_path / "._eye_640nm.tif").write_bytes(b"\0\x05\x16\x07 a Mac's attributes")
    assert formats.read(tmp_path).wavelengths_nm == (555.0,)
    assert formats.files_of(tmp_path) == [tmp_path / "eye_555nm.tif"]


# Damage and size


def test_sizes_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    write_png_by_hand(tmp_path / "bomb.png", np.zeros((2, 2, 1), np.uint8), 0, size_claimed=(100_000, 100_000))
    with pytest.raises(InputError, match="too many pixels"):
        formats.read(tmp_path / "bomb.png")
    write_png_by_hand(tmp_path / "big.png", np.zeros((2, 2, 1), np.uint8), 0, size_claimed=(10_000, 10_000))
    with pytest.raises(InputError, match=r"100000000 values[\s\S]*big.png[\s\S]*--max-values 100000000"):
        formats.read(tmp_path / "big.png", ReadOptions(max_values=10**7))
    header = write_envi(tmp_path, cube(), "bsq")
    header.write_text(header.read_text().replace("samples = 7", "samples = 4000000000"))
    with pytest.raises(InputError, match="--max-values"):
        formats.read(header)
    np.save(tmp_path / "a.npy", cube())
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content.replace(b"(5, 6, 7), }      ", b"(5, 6, 7000000), }"))
    with pytest.raises(CorruptData, match="a.npy"):
        formats.read(tmp_path / "a.npy")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("cube", shape=(10**5, 10**5, 10), dtype="u2", chunks=(100, 100, 10))
    with pytest.raises(InputError, match="--max-values"):
        formats.read(tmp_path / "a.h5")


def test_missing_unknown_and_forbidden_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot open"):
        formats.read(tmp_path / "absent.png")
    (tmp_path / "a.jp2").write_bytes(b"x")
    with pytest.raises(InputError, match=r"no reader for '.jp2'"):
        formats.read(tmp_path / "a.jp2")
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # Pillow would start Ghostscript
    with pytest.raises(InputError, match="a text file, named .png"):
        formats.read(tmp_path / "a.png")


def samples_of_every_format(folder: Path) -> list[Path]:
    """One small good file of each kind."""
    rgb = Image.fromarray(cube("uint8", 3).transpose(1, 2, 0))
    for name in ("a.png", "a.jpg", "a.gif", "a.bmp", "lzw.tif"):
        rgb.save(folder / name, **({"compression": "tiff_lzw"} if name == "lzw.tif" else {}))
    tifffile.imwrite(folder / "s.tif", cube(), photometric="minisblack", compression="zlib")
    write_envi(folder, cube(), "bil", extra="wavelength units = nm\nwavelength = {400, 500, 600, 700, 800}\n")
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("cube", data=cube(), compression="gzip")
    scipy.io.savemat(folder / "a.mat", {"Y": cube()}, do_compression=True)
    np.save(folder / "a.npy", cube())
    return sorted(path for path in folder.iterdir() if path.suffix in formats.READERS)


@pytest.mark.filterwarnings("ignore")  # theirs, about the damage
def test_damaged_files_never_end_in_a_foreign_error(tmp_path: Path) -> None:
    """Flipped bytes and cuts in every format: it reads, or it is one of our two errors that names the file."""
    rng = np.random.default_rng(3)
    refused = 0
    for path in samples_of_every_format(tmp_path):
        content = path.read_bytes()
        for trial in range(25):
            damaged = bytearray(content)
            if trial % 5 == 0:
                damaged = damaged[: rng.integers(0, len(damaged))]
            else:
                for at in rng.integers(0, min(len(damaged), 600), 4):
                    damaged[at] = rng.integers(0, 256)
            path.write_bytes(damaged)
            try:
                formats.read(path, ReadOptions(max_values=10**6))
            except (InputError, CorruptData) as error:
                refused += 1
                assert str(tmp_path) in str(error)
        path.write_bytes(content)
        formats.read(path)
    assert refused > 60


@pytest.mark.parametrize(
    "how", ["ome", "ome of several axes", "pyramid", "appended", "one write a page", "ome images", "mixed compression"]
)
@pytest.mark.parametrize("nodata", ["", "0"])
def test_stacks_are_read_whoever_cut_them_into_pages(tmp_path: Path, how: str, nodata: str) -> None:
    path, data_CHW = tmp_path / ("x.ome.tif" if "ome" in how or how == "pyramid" else "x.tif"), cube()
    more = {"photometric": "minisblack", "extratags": [(42113, "s", 0, nodata, True)] if nodata else []}
    if how.startswith("ome") and how != "ome images":
        data = data_CHW if how == "ome" else data_CHW[:, None]
        tifffile.imwrite(path, data, metadata={"axes": "CYX" if how == "ome" else "CZYX"}, **more)
    elif how == "appended":
        for band_HW in data_CHW:
            tifffile.imwrite(path, band_HW, append=True, **more)
    else:
        with tifffile.TiffWriter(path) as writer:
            if how == "pyramid":
                writer.write(data_CHW, subifds=1, metadata={"axes": "CYX"}, **more)
                writer.write(data_CHW[:, ::2, ::2], subfiletype=1, photometric="minisblack")
            for c, band_HW in enumerate(data_CHW if how != "pyramid" else ()):
                writer.write(band_HW, compression="zlib" if c % 2 and how == "mixed compression" else None, **more)
    raw = formats.read(path)
    assert np.array_equal(raw.data_CHW, data_CHW)
    assert [(s.kind, s.value) for s in raw.said] == ([("no-data", "0")] if nodata else [])


def test_pages_that_are_no_stack_are_refused_by_what_differs(tmp_path: Path) -> None:
    first, second = cube()[0], cube()[1]
    others = {"size": second[:-1], "dtype": (second // 256).astype(np.uint8), "a stack": np.stack([second, second])}
    for other in others.values():
        with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
            writer.write(first, photometric="minisblack"), writer.write(other, photometric="minisblack")
        with pytest.raises(InputError, match="2 images in one TIFF that are not the pages of one stack") as caught:
            formats.read(tmp_path / "x.tif")
        assert f"{'x'.join(map(str, other.shape))} {other.dtype} on {'2 pages' if other.ndim == 3 else '1 page'}" in caught.value.what


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("link", r"cube \(a link into other.h5\)[\s\S]*import the file that the link names"),
        ("alias", r"cube \(a link to /gone\)"),
        ("complex", r"cube \(complex numbers, 5x6x7\)[\s\S]*magnitude"),
        ("table", r"cube \(a table with the columns a, b\)"),
        ("text", r"cube \(text\)"),
        ("number", r"cube \(a single number\)"),
        ("nothing", r"there are: nothing"),
        ("struct", r"cube \(a struct\)[\s\S]*cube = S.FIELD"),
        ("cell", r"cube \(a cell\)[\s\S]*cube = C\{1\}"),
    ],
)
def test_a_file_without_an_array_of_numbers_says_what_it_holds(tmp_path: Path, what: str, said: str) -> None:
    path = tmp_path / ("a.mat" if what in ("struct", "cell") else "a.h5")
    held = {
        "link": h5py.ExternalLink("other.h5", "/cube"),
        "alias": h5py.SoftLink("/gone"),
        "complex": cube().astype(np.complex64),
        "table": np.zeros(3, [("a", "f4"), ("b", "i4")]),
        "text": "a text",
        "number": 3.0,
        "struct": {"data": cube()},
        "cell": np.array([cube(), "a"], object),
    }
    if path.suffix == ".mat":
        scipy.io.savemat(path, {"cube": held[what]})
    else:
        with h5py.File(path, "w") as file:
            if what in held:
                file["cube"] = held[what]
    with pytest.raises(InputError, match=f"no array of numbers[\\s\\S]*{said}"):
        formats.read(path)
    if what != "nothing":
        with pytest.raises(InputError, match=r"'cube' is"):
            formats.read(path, ReadOptions(variable="cube"))
