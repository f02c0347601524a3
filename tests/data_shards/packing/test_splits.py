"""Splits by person: stable when people are added, seeded, near the stated fractions, and served for small sets."""

from __future__ import annotations

import logging
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import InputError
from data_shards.folder import write_cube
from data_shards.look_alikes import look_alike
from data_shards.manifest import read_manifest, write_manifest
from data_shards.packing.pack import pack, write_dataset
from data_shards.packing.splits import SPLITS, split_subjects
from data_shards.packing.verify import verify
from data_shards.reading.dataset import Dataset
from data_shards.reading.mixture import Mixture
from tests.commands import invoke
from tests.conftest import made_cube

PEOPLE = [f"person-{i}" for i in range(4000)]


def sizes(split_of: dict[str, str]) -> dict[str, int]:
    return {name: sum(split == name for split in split_of.values()) for name in SPLITS}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("before", "after"), [(100, 150), (150, 151), (1000, 4000)])
def test_people_who_are_added_move_nobody(seed: int, before: int, after: int) -> None:
    old, new = (split_subjects(PEOPLE[:n], SPLITS, seed) for n in (before, after))
    assert {person: new[person] for person in old} == old


def test_neither_order_nor_repetition_of_people_matters() -> None:
    once = split_subjects(PEOPLE[:50], SPLITS, 0)
    assert split_subjects([*reversed(PEOPLE[:50]), *PEOPLE[:9]], SPLITS, 0) == once


@pytest.mark.parametrize("fractions", [SPLITS, {"a": 0.5, "b": 0.5}, {"synthetic": 1.0}, {"x": 0.0, "y": 0.3, "z": 0.7}])
def test_the_stated_fractions_are_approached(fractions: dict[str, float]) -> None:
    for seed in range(3):
        found = list(split_subjects(PEOPLE, fractions, seed).values())
        for name, share in fractions.items():
            # four standard deviations of so many draws
            assert abs(found.count(name) / len(found) - share) <= 4 * np.sqrt(share * (1 - share) / len(found))


def test_the_seed_decides_who_is_held_out() -> None:
    held_out = {seed: {p for p, split in split_subjects(PEOPLE[:200], SPLITS, seed).items() if split != "train"} for seed in range(5)}
    for a in held_out:
        for b in held_out:
            assert a == b or len(held_out[a] & held_out[b]) < 0.5 * len(held_out[a])


@pytest.mark.parametrize("count", [8, 10, 16, 20])
def test_small_sets_have_somebody_in_every_split(count: int) -> None:
    """As many people as a split by rank would take: none that was served before is refused."""
    for seed in range(60):
        assert min(sizes(split_subjects(PEOPLE[:count], SPLITS, seed)).values()) >= 1


def test_who_is_put_into_an_empty_split_is_told(caplog: pytest.LogCaptureFixture) -> None:
    told = 0
    for seed in range(30):
        caplog.clear()
        split_subjects(PEOPLE[:10], SPLITS, seed)
        told += any("--splits-from" in record.message for record in caplog.records if record.levelno == logging.WARNING)
    assert 0 < told < 30, "only where nobody fell there by himself"


def test_names_that_differ_in_blanks_and_capitals_alone_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i, subject in enumerate(["p0", "P0 ", "p 0", "p1", "q", *map(str, range(20))]):
        write_cube(tmp_path / "loose", made_cube(i, subject=subject))
    pack(tmp_path / "loose", tmp_path / "set")
    assert "subjects written in several ways (1, first 'P0 ' and 'p 0' and 'p0')" in caplog.text


TWINS = [
    "Zo\u00eb-01 ",
    "Zoe\u0308-01",
    "ZO\u00cb-1",
    "zo\u00eb_01",
    "zo\u00eb01",
    "zo\u00eb\u200b01",
    "\ufeffzo\u00eb 1",
    "zo\u00eb\u201301",
]
TWINS += ["zo\u00eb\u201301", "\uff5a\uff4f\u00eb\uff0d\uff10\uff11", "zo\u00ad\u00eb-\u0661"]


@pytest.mark.parametrize("twin", TWINS)
def test_one_person_under_two_spellings_is_told_wherever_people_are_read(tmp_path: Path, caplog, twin: str) -> None:
    people = ["zo\u00eb-01", twin, *(f"other-{i}" for i in range(14))]
    for i, subject in enumerate(people):
        write_cube(tmp_path / "in", made_cube(i, subject=subject))
    pack(tmp_path / "in", tmp_path / "set")
    assert "written in several ways (1, first" in caplog.text
    caplog.clear()
    assert faults(tmp_path / "set") == [] and "written in several ways (1, first" in caplog.text
    caplog.clear()
    (tmp_path / "in" / "c0000.json").unlink(), (tmp_path / "in" / "c0000.npy").unlink()
    pack(tmp_path / "in", tmp_path / "grown", splits_from=tmp_path / "set")
    assert "written in several ways (1, first" in caplog.text, "the twin stands in the set before"


def test_people_whose_names_are_near_are_not_taken_for_one() -> None:
    assert look_alike(["1-2", "12", "p1", "p10", "p01-2", "p012", "a", "b", "anna-b", "anna-c", "0", "10", ""]) == []


def test_the_fractions_may_fall_short_of_one_by_rounding() -> None:
    fractions = {f"s{k}": 0.1 for k in range(10)}
    assert sum(np.cumsum(list(fractions.values()))[-1:]) != 1.0
    assert set(split_subjects(PEOPLE, fractions, 0).values()) == set(fractions)


def folder_of(place: Path, people: range) -> Path:
    for i in people:
        write_cube(place, made_cube(i, subject=f"s{i:03d}"))
    return place


def test_a_set_that_grows_keeps_the_splits_of_the_set_before(tmp_path: Path) -> None:
    """Also of one whose splits came about otherwise: by the rank of earlier versions, or by hand."""
    cubes = [made_cube(i, subject=f"s{i:03d}") for i in range(12)]
    write_dataset(tmp_path / "old", {"train": cubes[4:], "val": cubes[:2], "test": cubes[2:4]}, source={})
    folder = folder_of(tmp_path / "in", range(30))
    invoke("data", "pack", folder, tmp_path / "new", "--splits-from", tmp_path / "old", "--seed", 5)
    old, new = Dataset(tmp_path / "old"), Dataset(tmp_path / "new")
    for split in SPLITS:
        assert set(old.subjects(split)) <= set(new.subjects(split))
    assert sum(new.count(split) for split in SPLITS) == 30
    assert len(new.subjects("train")) > 8 and not [f for _, found in verify(tmp_path / "new") for f in found]
    assert pack(folder, tmp_path / "new", splits_from=tmp_path / "old", seed=5) == new.manifest, "done already"


def test_cubes_that_are_added_to_the_source_are_packed_by_the_command_that_is_advised(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", range(20))
    pack(folder, tmp_path / "set")
    folder_of(folder, range(20, 26))
    with pytest.raises(InputError, match="other cubes") as caught:
        pack(folder, tmp_path / "set")
    invoke(*shlex.split(caught.value.mend)[1:])
    old, new = Dataset(tmp_path / "set"), Dataset(tmp_path / "set-2")
    assert all(set(old.subjects(split)) <= set(new.subjects(split)) for split in SPLITS)
    assert sum(new.count(split) for split in SPLITS) == 26


def stating(place: Path, splits: dict[int, str]) -> Path:
    for i, split in splits.items():
        write_cube(place, made_cube(i, subject=f"s{i:03d}", split=split))
    return place


def test_new_people_keep_the_split_that_they_state_beside_a_set_that_stands(tmp_path: Path) -> None:
    pack(stating(tmp_path / "in", {i: ("train", "val", "test")[i % 3] for i in range(9)}), tmp_path / "old")
    folder = stating(tmp_path / "in", dict.fromkeys(range(9, 18), "test"))
    invoke("data", "pack", folder, tmp_path / "new", "--splits-from", tmp_path / "old")
    assert set(Dataset(tmp_path / "new").subjects("test")) == {"s002", "s005", "s008", *(f"s{i:03d}" for i in range(9, 18))}


def test_a_stated_split_against_the_set_that_stands_is_refused_with_both_named(tmp_path: Path) -> None:
    pack(stating(tmp_path / "in", {i: "train" if i % 2 else "test" for i in range(8)}), tmp_path / "old")
    folder = stating(tmp_path / "in", {3: "test", 20: "test"})
    with pytest.raises(InputError, match=r"subject 's003' \(sample c0003\): split 'test' in .*/in, 'train' in .*/old"):
        pack(folder, tmp_path / "new", splits_from=tmp_path / "old")
    assert not (tmp_path / "new").exists()


def test_of_a_packed_source_nobody_new_moves_and_the_set_that_is_kept_wins(tmp_path: Path, caplog) -> None:
    cubes = [made_cube(i, subject=f"s{i:03d}") for i in range(12)]
    write_dataset(tmp_path / "kept", {"train": cubes[:4], "test": cubes[4:6]}, source={})
    write_dataset(tmp_path / "one", {"train": cubes[4:8], "test": cubes[8:12]}, source={})
    pack(tmp_path / "one", tmp_path / "new", splits_from=tmp_path / "kept")
    assert set(Dataset(tmp_path / "new").subjects("train")) == {"s006", "s007"}
    assert "2 samples stand in other splits" in caplog.text


@pytest.mark.parametrize(
    ("splits", "said"), [("train=0.5,hold=0.5", "names 'hold' and leaves out 'test', 'val'"), ("train=1", "leaves out")]
)
def test_other_splits_than_the_set_that_stands_has_are_refused(tmp_path: Path, splits: str, said: str) -> None:
    folder = folder_of(tmp_path / "in", range(20))
    pack(folder, tmp_path / "old")
    folder_of(folder, range(20, 24))
    with pytest.raises(InputError, match=said) as caught:
        invoke("data", "pack", folder, tmp_path / "new", "--splits-from", tmp_path / "old", "--splits", splits)
    advised = () if "hold" in splits else shlex.split(caught.value.mend)
    invoke("data", "pack", folder, tmp_path / "new", "--splits-from", tmp_path / "old", *advised)
    assert set(Dataset(tmp_path / "new").splits) == set(SPLITS)


def test_where_everybody_stands_already_it_is_said_that_nobody_is_left_to_divide(tmp_path: Path) -> None:
    write_dataset(
        tmp_path / "old", {"train": [made_cube(i, subject=f"s{i:03d}") for i in range(6)], "test": [made_cube(7, subject="z")]}, source={}
    )
    folder = folder_of(tmp_path / "in", range(6))
    words = ("data", "pack", folder, tmp_path / "new", "--splits-from", tmp_path / "old")
    with pytest.raises(InputError, match="split 'test' would be empty: all 6 subjects stand in the set .*nobody is left") as caught:
        invoke(*words, "--splits", "train=0.5,test=0.5")
    invoke(*words, *shlex.split(caught.value.mend.partition(", which")[0]))
    assert Dataset(tmp_path / "new").count("train") == 6


def test_a_set_divided_by_hand_lends_the_shares_of_its_people(tmp_path: Path) -> None:
    cubes = [made_cube(i, subject=f"s{i:03d}") for i in range(12)]
    write_dataset(tmp_path / "old", {"a": cubes[:6], "b": cubes[6:]}, source={})
    pack(folder_of(tmp_path / "in", range(40)), tmp_path / "new", splits_from=tmp_path / "old")
    new = Dataset(tmp_path / "new")
    assert set(new.splits) == {"a", "b"} and new.count("b") > 12


# --- the same person or picture on both sides -----------------------------------------------------------------------


def faults(folder: Path) -> list[str]:
    return [fault for _, found in verify(folder) for fault in found]


def test_verify_names_a_person_in_two_splits(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", {"train": [made_cube(0, subject="anna")], "val": [made_cube(1, subject="anna")]}, source={})
    assert faults(tmp_path / "set") == ["subject anna: in splits train and val"]


def test_verify_names_a_sample_that_stands_twice(tmp_path: Path) -> None:
    for place, first in (("set", 0), ("other", 3)):
        write_dataset(tmp_path / place, {"train": [made_cube(i) for i in range(first, first + 4)]}, source={})
    one, other = (read_manifest(tmp_path / place) for place in ("set", "other"))
    for suffix in ("tar", "index"):
        shutil.copy(tmp_path / "other" / f"train-000000.{suffix}", tmp_path / "set" / f"train-000001.{suffix}")
    index = tmp_path / "set" / "train-000001.index"
    index.write_bytes(index.read_bytes())
    second = type(one.shards[0])(**{**vars(other.shards[0]), "name": "train-000001.tar"})
    both = type(one)(**{**vars(one), "shards": (*one.shards, second), "splits": {"train": {"count": 8, "subjects": 4}}})
    write_manifest(tmp_path / "set", both)
    assert "sample c0003: in train-000000.tar and again in train-000001.tar" in faults(tmp_path / "set")


def doubled(tmp_path: Path, *, across: bool) -> Path:
    """Ten people; the picture of c0001 stands again under c0007, another person's."""
    folder = tmp_path / "in"
    for i in range(10):
        write_cube(folder, made_cube(i, subject=f"s{i}", split="val" if i >= 7 and across else "train"))
    shutil.copy(folder / "c0001.npy", folder / "c0007.npy")
    return folder


@pytest.mark.parametrize("codec", ["raw", "blosc2"])
def test_one_picture_in_two_splits_is_named_and_verify_refuses_the_set(tmp_path: Path, codec: str, caplog) -> None:
    pack(doubled(tmp_path, across=True), tmp_path / "set", codec=codec)
    said = "samples c0001 of s1 in train and c0007 of s7 in val are the same picture"
    assert said in caplog.text and [r.levelno for r in caplog.records] == [logging.ERROR]
    assert faults(tmp_path / "set") == [said]


def test_one_picture_twice_in_a_split_is_warned_of(tmp_path: Path, caplog) -> None:
    pack(doubled(tmp_path, across=False), tmp_path / "set")
    assert "c0001 of s1 in train and c0007 of s7 in train" in caplog.text
    caplog.clear()
    assert faults(tmp_path / "set") == [] and "c0007" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_the_advice_on_a_doubled_picture_works(tmp_path: Path) -> None:
    folder = doubled(tmp_path, across=True)
    for path in folder.glob("c0007.*"):
        path.unlink()
    pack(folder, tmp_path / "set")
    assert faults(tmp_path / "set") == []


def test_equal_checksums_of_unlike_pictures_are_no_double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_shards.packing import doubles

    write_dataset(tmp_path / "set", {"train": [made_cube(0)], "val": [made_cube(2)]}, source={})
    monkeypatch.setattr(doubles, "hash", lambda _: 7, raising=False)
    assert faults(tmp_path / "set") == []


def test_a_mixture_refuses_a_set_that_trains_on_whom_another_holds_out(tmp_path: Path) -> None:
    cubes = [made_cube(i, subject=f"s{i}") for i in range(12)]
    write_dataset(tmp_path / "one", {"train": cubes[:5], "val": cubes[5:6]}, source={})
    write_dataset(tmp_path / "two", {"train": cubes[4:8], "val": cubes[8:9]}, source={})
    with pytest.raises(InputError, match="1 people whom one set trains on are held out in another: s5") as caught:
        Mixture([Dataset(tmp_path / "one"), Dataset(tmp_path / "two")], [1, 1])
    assert caught.value.where == f"train of {tmp_path / 'two'}, val of {tmp_path / 'one'}"
    invoke(*shlex.split(caught.value.mend)[1:])
    Mixture([Dataset(tmp_path / "one"), Dataset(tmp_path / "two-split")], [1, 1])
