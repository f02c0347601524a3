"""Maps of others: a mask is read where two values say what is inside, refused with the option that reads it elsewhere; tags turn both."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import tifffile
from PIL import Image, ImageOps

from data_shards import folder
from data_shards.errors import InputError, RetinaforgeError
from data_shards.formats import ReadOptions
from data_shards.importing import geometry, importer, labels, map_files, masks
from data_shards.importing.config import ImportConfig
from data_shards.phantom import painted
from data_shards.phantom.persons import PhantomConfig

H, W = 96, 112


def circle(x: int, y: int, radius: int) -> np.ndarray:
    yy, xx = np.ogrid[:H, :W]
    return (xx - x) ** 2 + (yy - y) ** 2 <= radius * radius


DISC, CUP, FIELD = circle(70, 46, 12), circle(70, 46, 6), circle(56, 48, 45)


def drawn(outside: int, rim: int, cup: int) -> np.ndarray:
    map_HW = np.full((H, W), outside, np.uint8)
    map_HW[DISC], map_HW[CUP] = rim, cup
    return map_HW


def colours(outside: str, rim: str, cup: str) -> np.ndarray:
    table = np.array([list(bytes.fromhex(name)) for name in (outside, rim, cup)], np.uint8)
    return table[drawn(0, 1, 2)]


def mask_in(path: Path, role: str = "onh", values: str = "", **more) -> np.ndarray:
    inside = masks.parse_inside(values, f"--{role}-values") if values else None
    return masks.mask_of(map_files.read_map(path, ReadOptions()), role, inside, **more)


def advised(error: InputError, option: str) -> str:
    """The value that a message gives to an option, as a shell would read it."""
    words = shlex.split(re.search(rf"{option} .*", error.mend.replace(";", " ; "))[0], posix=True)
    return words[1]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """One photograph, and an empty folder for its masks."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    rgb_HWS = np.random.default_rng(0).integers(60, 120, (H, W, 3), np.uint8)
    Image.fromarray(rgb_HWS).save(tmp_path / "images" / "001.png")
    return tmp_path


def import_of(root: Path, **more) -> ImportConfig:
    return ImportConfig(source=root / "images", **more)


# What lies inside


@pytest.mark.parametrize("values", [(0, 1, 2), (255, 128, 0), (0, 128, 255), (0, 2, 1), (3, 1, 2)])
def test_a_cup_in_a_disc_is_refused_and_both_ways_of_the_message_read_the_disc(images: Path, values: tuple[int, int, int]) -> None:
    Image.fromarray(drawn(*values)).save(images / "masks" / "001.png")
    with pytest.raises(InputError, match=r"a mask of 3 values") as caught:
        importer.import_cubes(import_of(images, onh=str(images / "masks")), images / "out")
    said = str(caught.value)
    for value, pixels in zip(values, (~DISC, DISC & ~CUP, CUP), strict=True):
        assert f"{value} ({pixels.sum()} pixels)" in said
    assert not (images / "out").exists()
    stated = import_of(images, onh=str(images / "masks"), onh_values=advised(caught.value, "--onh-values"))
    mapped = import_of(images, labels=advised(caught.value, "--labels"), label_map=advised(caught.value, "--label-map"))
    for name, config in (("stated", stated), ("mapped", mapped)):
        importer.import_cubes(config, images / name)
        assert np.array_equal(folder.read_cube(images / name, "001").labels_HW == 3, DISC)


def test_with_label_maps_a_second_labels_option_is_not_advised(tmp_path: Path) -> None:
    Image.fromarray(drawn(0, 1, 2)).save(tmp_path / "m.png")
    with pytest.raises(InputError) as caught:
        mask_in(tmp_path / "m.png", labels_free=False)
    assert "--labels" not in str(caught.value)


@pytest.mark.parametrize("values", [(0, 255), (255, 0), (200, 255), (1, 2), (2, 1)])
def test_of_two_values_the_brighter_is_inside_and_a_disc_over_a_quarter_is_refused(tmp_path: Path, values: tuple[int, int]) -> None:
    Image.fromarray(drawn(values[0], values[1], values[1])).save(tmp_path / "m.png")
    if values[1] > values[0]:
        assert np.array_equal(mask_in(tmp_path / "m.png"), DISC)
        return
    with pytest.raises(InputError, match=r"an optic disc over 96% of the image[\s\S]*m.png") as caught:
        mask_in(tmp_path / "m.png")
    assert np.array_equal(mask_in(tmp_path / "m.png", values=advised(caught.value, "--onh-values")), DISC)
    large_HW = mask_in(tmp_path / "m.png", values=str(values[0]))  # stated is stated: crops around the disc hold discs of that size
    assert np.array_equal(large_HW, ~DISC)


def test_a_field_of_view_that_is_inside_out_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.where(FIELD, 0, 255).astype(np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(InputError, match="holds the margin of the image and not its middle") as caught:
        mask_in(tmp_path / "m.png", "fov")
    assert np.array_equal(mask_in(tmp_path / "m.png", "fov", advised(caught.value, "--fov-values")), FIELD)
    for good_HW in (FIELD, np.ones((H, W), bool), ~circle(56, 48, 4)):  # some cameras leave a small black disc in the middle
        Image.fromarray(good_HW.astype(np.uint8) * 255).save(tmp_path / "m.png")
        assert np.array_equal(mask_in(tmp_path / "m.png", "fov"), good_HW)


def test_an_antialiased_mask_is_refused_and_the_advised_range_reads_it(tmp_path: Path) -> None:
    soft = Image.fromarray(drawn(0, 255, 255)).resize((W * 2, H * 2), Image.Resampling.BICUBIC).resize((W, H), Image.Resampling.BOX)
    for name, image in (("dark.png", soft), ("bright.png", ImageOps.invert(soft))):
        image.save(tmp_path / name)
        with pytest.raises(InputError, match=r"a mask of \d+ values[\s\S]*and \d+ more") as caught:
            mask_in(tmp_path / name)
        found_HW = mask_in(tmp_path / name, values=advised(caught.value, "--onh-values"))
        assert (found_HW & DISC).sum() / (found_HW | DISC).sum() > 0.9


@pytest.mark.parametrize("quality", [20, 50, 75, 95])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_noise_is_no_third_value_but_a_cup_is(tmp_path: Path, quality: int, mode: str) -> None:
    def saved(map_HW: np.ndarray) -> Path:
        Image.fromarray(map_HW).convert(mode).save(tmp_path / "m.jpg", quality=quality)
        return tmp_path / "m.jpg"

    found_HW = mask_in(saved(drawn(0, 255, 255)))
    assert (found_HW & DISC).sum() / (found_HW | DISC).sum() > 0.95
    assert (mask_in(saved(np.where(FIELD, 255, 0).astype(np.uint8)), "fov") == FIELD).mean() > 0.99
    for values in ((0, 128, 255), (255, 128, 0)):
        with pytest.raises(InputError, match="even ground at") as caught:
            mask_in(saved(drawn(*values)))
        found_HW = mask_in(tmp_path / "m.jpg", values=advised(caught.value, "--onh-values"))
        assert (found_HW & DISC).sum() / (found_HW | DISC).sum() > 0.9
    with pytest.raises(InputError, match="JPEG's own changes may reach"):
        mask_in(saved(drawn(0, 1, 40)))


@pytest.mark.parametrize(
    ("outside", "inside", "reads"),
    [("000000", "ff0000", True), ("000000", "ffffff", True), ("ffffff", "ff0000", False), ("0000ff", "ff0000", False)],
)
def test_masks_in_colour(tmp_path: Path, outside: str, inside: str, reads: bool) -> None:
    Image.fromarray(colours(outside, inside, inside)).save(tmp_path / "m.png")
    if reads:
        assert np.array_equal(mask_in(tmp_path / "m.png"), DISC)
        return
    with pytest.raises(InputError, match=f"a mask of 2 values[\\s\\S]*#{inside}") as caught:
        mask_in(tmp_path / "m.png", labels_free=True)
    assert np.array_equal(mask_in(tmp_path / "m.png", values=advised(caught.value, "--onh-values")), DISC)
    mapped_HW = labels.classes_of(
        map_files.read_map(tmp_path / "m.png", ReadOptions()), labels.parse_label_map(advised(caught.value, "--label-map"))
    )
    assert np.array_equal(mapped_HW == 3, DISC)


@pytest.mark.parametrize("suffix", [".png", ".gif", ".tif"])
def test_a_palette_is_read_by_its_colours_and_stated_by_its_indices(tmp_path: Path, suffix: str) -> None:
    def saved(map_HW: np.ndarray, *palette: int) -> Path:
        image = Image.fromarray(map_HW)
        image.putpalette(palette)
        image.save(tmp_path / f"m{suffix}")
        return tmp_path / f"m{suffix}"

    assert np.array_equal(mask_in(saved(drawn(1, 0, 0), 255, 255, 255, 0, 0, 0)), DISC)  # index 0 is white
    assert np.array_equal(mask_in(saved(drawn(0, 1, 1), 0, 0, 0, 128, 0, 0)), DISC)
    if suffix == ".png":  # a palette that shows all alike: only the index tells
        assert np.array_equal(mask_in(saved(drawn(0, 1, 1), 7, 7, 7, 7, 7, 7)), DISC)
    path = saved(drawn(0, 1, 2), 0, 0, 0, 128, 0, 0, 0, 128, 0)
    with pytest.raises(InputError, match="a mask of 3 values: 0") as caught:
        mask_in(path)
    assert np.array_equal(mask_in(path, values=advised(caught.value, "--onh-values")), DISC)


def test_a_mask_drawn_in_transparency_alone_is_read(tmp_path: Path) -> None:
    for colour in (0, 255):
        alpha_HW = drawn(0, 255, 255)
        Image.fromarray(np.dstack([np.full((H, W, 3), colour, np.uint8), alpha_HW])).save(tmp_path / "m.png")
        assert np.array_equal(mask_in(tmp_path / "m.png"), DISC)
    label_map = labels.parse_label_map("0=background,255=vein")
    assert np.array_equal(labels.classes_of(map_files.read_map(tmp_path / "m.png", ReadOptions()), label_map) == 2, DISC)
    white_HWS = np.dstack([colours("ffffff", "ff0000", "ffffff"), drawn(0, 255, 255)])  # a white cup on white that is not there
    Image.fromarray(white_HWS).save(tmp_path / "m.png")
    with pytest.raises(InputError, match="one colour that differ in transparency"):
        mask_in(tmp_path / "m.png")


def test_stated_values_that_no_pixel_has_are_refused(tmp_path: Path) -> None:
    Image.fromarray(drawn(0, 1, 2)).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"none of the values[\s\S]*m.png"):
        mask_in(tmp_path / "m.png", values="128-255")
    with pytest.raises(InputError, match="a mask in grey"):
        mask_in(tmp_path / "m.png", values="#ff0000")
    Image.fromarray(drawn(0, 0, 0)).save(tmp_path / "m.png")
    assert not mask_in(tmp_path / "m.png", values="128-255").any()  # an eye whose disc is not to be seen
    for wrong in ("", "x", "5-2", "1,#ff0000", "1;2"):
        with pytest.raises(InputError, match="--onh-values"):
            masks.parse_inside(wrong, "--onh-values")


def test_values_without_their_mask_are_refused(images: Path) -> None:
    with pytest.raises(InputError, match=r"--fov-values[\s\S]*--fov DIR"):
        importer.plan(import_of(images, fov_values="1"))


def test_a_jpeg_is_no_label_map_whatever_its_name(tmp_path: Path) -> None:
    Image.fromarray(drawn(0, 255, 255)).save(tmp_path / "m.png", format="JPEG")
    with pytest.raises(InputError, match=r"labels in a JPEG[\s\S]*m.png[\s\S]*anew as PNG"):
        labels.classes_of(map_files.read_map(tmp_path / "m.png", ReadOptions()), labels.parse_label_map("0=background,255=onh"))


def test_the_mend_for_values_without_a_class_names_them_all(tmp_path: Path) -> None:
    Image.fromarray(drawn(0, 7, 9)).save(tmp_path / "m.png")
    file = map_files.read_map(tmp_path / "m.png", ReadOptions())
    with pytest.raises(InputError) as caught:
        labels.classes_of(file, labels.parse_label_map("0=background"))
    added = re.search(r"add (\S+) to", caught.value.mend)[1]
    assert not labels.classes_of(file, labels.parse_label_map(f"0=background,{added}")).any()


def test_pgm_and_pbm_maps_keep_their_values(tmp_path: Path) -> None:
    classes_HW = drawn(0, 1, 2)
    (tmp_path / "m.pgm").write_bytes(f"P5 {W} {H} 3\n".encode() + classes_HW.tobytes())
    file = map_files.read_map(tmp_path / "m.pgm", ReadOptions())
    assert np.array_equal(file.values_HW, classes_HW)  # Pillow would scale them by 255 / 3
    Image.fromarray(DISC).save(tmp_path / "m.pbm")
    assert np.array_equal(mask_in(tmp_path / "m.pbm"), DISC)


@pytest.mark.parametrize("row", ["500,46,24", "70,46,0", "70,46,90", "70,46,-3", "nan,46,24"])
def test_a_circle_outside_its_image_or_over_a_quarter_of_it_is_refused(images: Path, row: str) -> None:
    (images / "discs.csv").write_text(f"file,x,y,diameter\n001.png,{row}\n")
    with pytest.raises(InputError, match=r"discs.csv"):
        importer.import_cubes(import_of(images, onh_circles=images / "discs.csv"), images / "out")


# Orientation


def shown(stored_HW: np.ndarray, tag: int) -> np.ndarray:
    """By Pillow, which does not know our code."""
    image = Image.fromarray(stored_HW)
    image.getexif()[0x0112] = tag
    return np.array(ImageOps.exif_transpose(image))


def turned_image(root: Path, tag: int, size: tuple[int, int] = (H, W), suffix: str = ".png") -> np.ndarray:
    """Save the photograph with an orientation tag; returns its pixels as stored."""
    rgb_HWS = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    (root / "images" / "001.png").unlink()
    if suffix == ".tif":
        tifffile.imwrite(root / "images" / "001.tif", rgb_HWS, photometric="rgb", extratags=[(274, 3, 1, tag, True)])
    else:
        exif = Image.Exif()
        exif[0x0112] = tag
        Image.fromarray(rgb_HWS).save(root / "images" / f"001{suffix}", exif=exif)
    return rgb_HWS


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("tag", range(2, 9))
def test_the_maps_of_a_turned_image_are_turned_with_it_or_refused(images: Path, tag: int, suffix: str) -> None:
    rgb_HWS = turned_image(images, tag, suffix=suffix)
    stored_HW = drawn(0, 1, 2)
    wanted = {"labels": str(images / "masks"), "label_map": "0=background,1=artery,2=vein"}
    for drawn_on, map_HW in (("stored", stored_HW), ("shown", shown(stored_HW, tag))):
        Image.fromarray(map_HW).save(images / "masks" / "001.png")
        if tag < 5:
            with pytest.raises(InputError, match=rf"orientation tag {tag}[\s\S]*--map-orientation shown"):
                importer.import_cubes(import_of(images, **wanted), images / f"out-{drawn_on}")
        for statement in ("", drawn_on) if tag >= 5 else (drawn_on,):
            out = images / f"out-{drawn_on}-{statement}"
            importer.import_cubes(import_of(images, **wanted, map_orientation=statement), out)
            cube = folder.read_cube(out, "001")
            assert np.array_equal(cube.labels_HW, shown(stored_HW, tag))
            assert np.array_equal(cube.data_CHW[0], shown(rgb_HWS[..., 0], tag))


def test_a_square_map_of_a_quarter_turn_needs_the_statement(images: Path) -> None:
    turned_image(images, 6, (H, H))
    Image.fromarray(drawn(0, 1, 2)[:, :H]).save(images / "masks" / "001.png")
    with pytest.raises(InputError, match="--map-orientation"):
        importer.import_cubes(import_of(images, fov=str(images / "masks"), fov_values="1"), images / "out")
    Image.fromarray(np.full((H, H), 255, np.uint8)).save(images / "masks" / "001.png")
    importer.import_cubes(import_of(images, fov=str(images / "masks")), images / "out")  # the same however it is turned


@pytest.mark.parametrize("tag", range(2, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_a_map_is_turned_by_its_own_tag(images: Path, tag: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    more = {"tiffinfo": {274: tag}, "compression": "tiff_lzw"} if suffix == ".tif" else {"exif": exif}
    map_HW = drawn(0, 255, 255)
    Image.fromarray(map_HW).save(images / "masks" / f"001{suffix}", **more)
    found_HW = mask_in(images / "masks" / f"001{suffix}")
    assert (found_HW == (shown(map_HW, tag) > 0)).mean() > 0.99


def test_a_map_and_an_image_that_both_have_the_tag_agree(images: Path) -> None:
    rgb_HWS = turned_image(images, 3)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(drawn(0, 255, 255)).save(images / "masks" / "001.png", exif=exif)
    importer.import_cubes(import_of(images, onh=str(images / "masks")), images / "out")
    cube = folder.read_cube(images / "out", "001")
    assert np.array_equal(cube.labels_HW == 3, DISC[::-1, ::-1])
    assert np.array_equal(cube.data_CHW[0], rgb_HWS[::-1, ::-1, 0])


@pytest.mark.parametrize("tag", [3, 6])
def test_circles_of_a_turned_image_need_the_statement_and_follow_it(images: Path, tag: int) -> None:
    turned_image(images, tag)
    (images / "discs.csv").write_text("file,x,y,diameter\n001.png,70,46,24\n")
    wanted = {"onh_circles": images / "discs.csv"}
    with pytest.raises(InputError, match=r"--map-orientation"):
        importer.import_cubes(import_of(images, **wanted), images / "out")
    importer.import_cubes(import_of(images, **wanted, map_orientation="stored"), images / "stored")
    assert np.array_equal(folder.read_cube(images / "stored", "001").labels_HW == 3, shown(DISC, tag))
    importer.import_cubes(import_of(images, **wanted, map_orientation="shown"), images / "shown")
    yy, xx = np.ogrid[: (W if tag == 6 else H), : (H if tag == 6 else W)]
    assert np.array_equal(folder.read_cube(images / "shown", "001").labels_HW == 3, (xx - 70) ** 2 + (yy - 46) ** 2 <= 144)


def test_errors_of_maps_are_ours(tmp_path: Path) -> None:
    for content in (b"", b"P5 2 2 255\nx", b"\x89PNG\r\n\x1a\n"):
        for suffix in map_files.SUFFIXES:
            (tmp_path / f"m{suffix}").write_bytes(content)
            with pytest.raises(RetinaforgeError, match=f"m{suffix}"):
                map_files.read_map(tmp_path / f"m{suffix}", ReadOptions())


# Vessels on a coarser raster


def tree(seed: int, size: int = 400) -> np.ndarray:
    """Labels of thin, winding vessels, each of one piece: arteries and veins from 1 to 6 pixels wide, with a disc under them."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:size, :size]
    labels_HW = np.where((xx - 200) ** 2 + (yy - 200) ** 2 <= 900, 3, 0).astype(np.uint8)
    at = np.arange(20, size - 20)
    for number, centre in enumerate((50, 110, 170, 240, 300, 350)):
        path = centre + 12 * np.sin(at / rng.uniform(16, 30)) + 8 * np.sin(at / rng.uniform(20, 60))
        for column, row in zip(at, path, strict=True):
            labels_HW[int(row) : int(row) + 1 + number, column] = 1 + number % 2
    return labels_HW


def pieces(mask_HW: np.ndarray) -> int:
    return scipy.ndimage.label(mask_HW, np.ones((3, 3)))[1]


@pytest.mark.parametrize("size_HW", [(224, 224), (100, 100), (61, 61), (100, 224), (100, 500)])
@pytest.mark.parametrize("seed", range(3))
def test_a_vessel_that_is_shrunk_stays_one_piece(size_HW: tuple[int, int], seed: int) -> None:
    labels_HW = tree(seed)
    shrunk_HW = geometry.resize_map(labels_HW, size_HW)
    for number, vessel in ((1, 3), (2, 3)):
        assert pieces(labels_HW == number) == pieces(shrunk_HW == number) == vessel
    assert set(np.unique(shrunk_HW)) == {0, 1, 2, 3}
    disc = (labels_HW == 3).mean(), (shrunk_HW == 3).mean()
    assert abs(disc[0] - disc[1]) < 0.02


def test_a_field_of_view_is_shrunk_by_the_half_of_a_pixel() -> None:
    fov_HW = np.zeros((6, 6), bool)
    fov_HW[1:6, 1:5] = True
    assert np.array_equal(geometry.resize_map(fov_HW, (2, 2)), [[False, False], [True, True]])


def test_painted_vessels_are_whole_on_a_coarser_raster() -> None:
    labels_HW = tree(1)
    cube = painted.paint_labels(PhantomConfig(size=96, wavelengths_nm=(555,)), labels_HW, number=0, key="a", subject_id="a")
    for number in (1, 2):
        assert pieces(cube.labels_HW == number) == 3


def test_a_mask_drawn_on_a_photograph_is_refused_without_a_range_of_colours(tmp_path: Path) -> None:
    photo_HWC = np.random.default_rng(0).integers(20, 200, (H, W, 3), np.uint8)
    photo_HWC[DISC] = 0, 255, 0
    Image.fromarray(photo_HWC).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"--onh-values '#RRGGBB'") as caught:
        mask_in(tmp_path / "m.png")
    assert not re.search(r"values \d", caught.value.mend)
    assert np.array_equal(mask_in(tmp_path / "m.png", values="#00ff00"), DISC)
