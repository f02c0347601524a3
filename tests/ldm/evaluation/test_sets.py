"""Which images are compared with which, and what cannot be compared."""

from dataclasses import replace

import numpy as np
import pytest

from data_shards.errors import InputError
from data_shards.folder import write_cube
from data_shards.packing.pack import pack
from data_shards.reading.dataset import Dataset
from ldm.evaluation.measurements import by_shard
from ldm.evaluation.sets import Part, check_comparable, common_fov, evenly, real_parts, reflectance
from tests.conftest import made_cube


def packed_from(folder, cubes, splits):
    for cube in cubes:
        write_cube(folder / "loose", cube)
    pack(folder / "loose", folder / "set", splits=splits)
    return Dataset(folder / "set")


def test_evenly_spreads_and_never_repeats():
    assert evenly(5, None).tolist() == evenly(5, 9).tolist() == [0, 1, 2, 3, 4]
    for count, limit in ((10, 4), (48, 24), (3, 2), (4096, 4095)):
        low, high = np.arange(limit) * count // limit, np.arange(1, limit + 1) * count // limit
        assert ((low <= evenly(count, limit)) & (evenly(count, limit) < high)).all()
    assert evenly(48, 24).tolist() == evenly(48, 24).tolist()


def test_every_second_image_is_not_every_right_eye():
    """Keys of right and left eyes take turns."""
    assert 0.3 < (evenly(200, 100) % 2).mean() < 0.7


def people_of(parts):
    """The people of reference, floor and whitening; each group has its own."""
    groups = [set(part.units()) for part in (parts.reference, parts.floor, parts.whitened_by)]
    assert not (groups[0] & groups[1] or groups[1] & groups[2])
    return [len(group) for group in groups]


def in_splits(folder, **people):
    cubes = [(split, who) for split, count in people.items() for who in range(count)]
    return packed_from(folder, [made_cube(i, subject=f"{split}{who}", split=split) for i, (split, who) in enumerate(cubes)], None)


def test_the_floor_is_people_whom_neither_the_whitening_nor_the_reference_has(tmp_path):
    parts = real_parts(in_splits(tmp_path / "a", train=6, val=5, test=4), "val", None)
    assert (parts.floor.split, parts.whitened_by.split, people_of(parts)) == ("test", "train", [5, 4, 6])
    assert parts.floor_is == "people of split 'test'"
    few_in_test = real_parts(in_splits(tmp_path / "b", train=6, val=9, test=3), "val", None)
    assert (few_in_test.floor.split, people_of(few_in_test)) == (
        "val",
        [5, 4, 6],
    ) and "half of the people of split 'val'" in few_in_test.floor_is
    few = real_parts(in_splits(tmp_path / "c", train=6, val=7), "val", None)
    assert (few.floor.split, people_of(few)) == ("train", [7, 3, 3]) and "half of the people of split 'train'" in few.floor_is


def test_against_the_training_split_others_are_the_floor(dataset):
    parts = real_parts(dataset, "train", 3)
    assert parts.floor.split != "train" and len(parts.reference.sample_N) == 3 and len(parts.whitened_by.sample_N) == 32


def test_one_split_is_halved_by_people(tmp_path):
    only = packed_from(tmp_path, [made_cube(i) for i in range(8)], {"train": 1.0})
    parts = real_parts(only, "train", None)
    assert len(parts.reference.sample_N) == len(parts.floor.sample_N) == 4
    assert not set(parts.reference.units()) & set(parts.floor.units())


def test_one_split_that_may_be_a_reference_is_divided_into_three(tmp_path):
    only = packed_from(tmp_path, [made_cube(i, subject=f"s{i}") for i in range(9)], {"all": 1.0})
    assert people_of(real_parts(only, "all", None)) == [3, 3, 3]


def test_one_person_has_no_floor(tmp_path):
    only = packed_from(tmp_path, [made_cube(i, subject="anna") for i in range(4)], {"train": 1.0})
    parts = real_parts(only, "train", None)
    assert len(parts.reference.sample_N) == 4 and parts.floor is None and parts.floor_is == ""


@pytest.mark.parametrize("limit", [None, 5])
def test_the_shards_of_a_part_give_its_images_in_order(dataset, limit):
    part = Part(dataset=dataset, split="train", sample_N=evenly(32, limit))
    batches = [batch for piece in by_shard([part, part]) for batch in piece.batches(3)]
    keys = dataset.keys("train")
    assert [key for batch in batches for key in batch.keys] == [keys[i] for i in part.sample_N]
    assert batches[0].fov_BHW is not None and batches[0].labels_BHW is not None
    first = reflectance(dataset, batches[0].cubes_BCHW, "cpu")[0].numpy()
    np.testing.assert_allclose(first, dataset.cube("train", int(part.sample_N[0])).data_CHW / 4095, rtol=1e-5)


def test_common_field_of_view(dataset, tmp_path):
    np.testing.assert_array_equal(common_fov(dataset, "train"), dataset.cube("train", 0).fov_HW)
    bare = packed_from(tmp_path, [replace(made_cube(i), fov_HW=None) for i in range(4)], {"train": 1.0})
    assert common_fov(bare, "train").all()


def test_a_pixel_outside_in_more_than_one_of_twenty_does_not_count(tmp_path):
    cubes = [made_cube(i, size=8) for i in range(10)]
    shifted = [
        replace(c, fov_HW=np.roll(np.ones((8, 8), bool) & (np.arange(8) > 0), 0, 1) if i == 3 else np.ones((8, 8), bool))
        for i, c in enumerate(cubes)
    ]
    fov = common_fov(packed_from(tmp_path, shifted, {"train": 1.0}), "train")
    assert not fov[:, 0].any() and fov[:, 1:].all()


def test_what_cannot_be_compared(dataset, tmp_path):
    other_bands = packed_from(tmp_path / "bands", [made_cube(i, bands=5) for i in range(4)], {"synthetic": 1.0})
    other_size = packed_from(tmp_path / "size", [made_cube(i, size=16) for i in range(4)], {"synthetic": 1.0})
    many_splits = packed_from(tmp_path / "splits", [made_cube(i + 50) for i in range(8)], {"train": 0.5, "val": 0.5})
    for other, message in (
        (other_bands, "bands at 500, 520, 540, 560, 580 nm"),
        (other_size, r"cubes of shape \(4, 16, 16\)"),
        (dataset, "both are dataset"),
    ):
        with pytest.raises(InputError, match=message):
            check_comparable(dataset, other)
    with pytest.raises(InputError, match="splits train, val") as refused:
        check_comparable(dataset, many_splits)
    assert "--splits synthetic=1" in refused.value.mend
    with pytest.raises(InputError, match="did you mean 'val'"):
        real_parts(dataset, "vall", None)


def test_units_are_people_or_images_and_so_few_that_what_is_kept_of_each_is_bounded(dataset):
    people = Part(dataset=dataset, split="train", sample_N=np.arange(32))
    names = people.units()
    assert [names.index(name) for name in names] == [int(np.flatnonzero(people.unit_N() == u)[0]) for u in people.unit_N()]
    images = Part(dataset=dataset, split="train", sample_N=np.arange(32), independent=True)
    assert images.unit_N().tolist() == list(range(32)) and images.unit_N(8).tolist() == [i // 4 for i in range(32)]
