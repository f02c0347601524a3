"""A planted copy is found, by image and by patient; what the audit cannot see is stated by a test as well."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from typer.testing import CliRunner

from data_shards.errors import InputError, TryAgain
from data_shards.folder import write_cube
from data_shards.manifest import read_manifest, write_manifest
from data_shards.packing.pack import pack, write_dataset
from data_shards.reading.dataset import Dataset
from launch.cli import app
from launch.run import read_result
from ldm.authenticity import audit as audit_module
from ldm.authenticity import descriptors
from ldm.authenticity import units as units_module
from ldm.authenticity.audit import AuditConfig, AuditResult, audit
from ldm.authenticity.flagged import flagged_keys
from ldm.authenticity.near import near
from ldm.authenticity.tables import rows_of_audit
from tests.conftest import made_cube

COPIES = {"noisy": 3, "mirrored": 10, "brighter": 21, "rolled": 30, **{f"noisy{i}": i for i in (4, 5, 6, 7, 8, 9)}}
"""Planted copy → the training image it is of."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """32 training images of 16 people, one image of each of 40 people held out: fewer could not tell copies from chance."""
    folder = tmp_path_factory.mktemp("real")
    for i in range(32):
        write_cube(folder / "loose", made_cube(i, split="train"))
    for i in range(40):
        write_cube(folder / "loose", made_cube(i + 100, subject=f"v{i:02d}", split="val"))
    pack(folder / "loose", folder / "set", shard_mib=1)
    return folder / "set"


@pytest.fixture(scope="module")
def planted(packed, tmp_path_factory):
    """20 images of people that the real set does not have, and changed copies of training images."""
    folder, real = tmp_path_factory.mktemp("planted"), Dataset(packed)
    rng = np.random.default_rng(0)
    noisy = {name: lambda x: x + rng.normal(0, 5, x.shape) for name in COPIES if name.startswith("noisy")}
    change = noisy | {
        "mirrored": lambda x: x[..., ::-1],
        "brighter": lambda x: 1.25 * x,
        "rolled": lambda x: np.roll(x, x.shape[-1] // 2, -1),
    }
    images = {f"new{i:02d}": made_cube(i + 900) for i in range(20)} | {name: real.cube("train", i) for name, i in COPIES.items()}
    for name, cube in images.items():
        data = change.get(name, lambda x: x)(cube.data_CHW.astype(float)).round().clip(0, 4095).astype(np.uint16)
        meta = replace(cube.meta, key=name, subject_id="synthetic", notes={})
        write_cube(folder / "loose", replace(cube, data_CHW=data, meta=meta, labels_HW=None, fov_HW=None))
    pack(folder / "loose", folder / "set", splits={"synthetic": 1.0})
    return Dataset(folder / "set")


@pytest.fixture(scope="module")
def result(packed, planted):
    return audit(Dataset(packed), planted, AuditConfig())


def closest(result, descriptor):
    return {pair.synthetic_key: pair for pair in result.descriptors[descriptor].closest}


@pytest.mark.parametrize(
    ("copy", "descriptor"),
    [("noisy", "pooled"), ("mirrored", "pooled"), ("noisy", "contrast"), ("mirrored", "contrast"), ("brighter", "contrast")],
)
def test_planted_copies_are_found(result, packed, copy, descriptor):
    real, pair = Dataset(packed), closest(result, descriptor)[copy]
    assert pair.train_index == COPIES[copy]
    assert pair.flagged
    assert (pair.train_key, pair.subject) == (real.keys("train")[COPIES[copy]], real.subjects("train")[COPIES[copy]])
    assert pair.mirrored == (copy == "mirrored")
    assert pair.of_floor_median < 0.2


def test_they_lead_the_list(result):
    assert next(iter(closest(result, "pooled"))) == "mirrored" and closest(result, "pooled")["mirrored"].exact
    seen = {name for name in COPIES if name != "rolled"}
    assert set(list(closest(result, "pooled"))[:8]) == seen - {"brighter"} and set(list(closest(result, "contrast"))[:9]) == seen


def test_what_it_cannot_see(result):
    """A copy that was shifted by half its width passes: the caveat says so, and so does this test."""
    for descriptor in result.descriptors:
        found = closest(result, descriptor).get("rolled")
        assert found is None or found.of_floor_median > 0.5


def test_patients_of_copies_are_named(result, packed):
    subjects = Dataset(packed).subjects("train")
    by_patient = result.descriptors["contrast"].by_patient
    named = {row.subject for row in by_patient.worst}
    assert named == {subjects[i] for name, i in COPIES.items() if name != "rolled"}  # and nobody else
    assert by_patient.patients_flagged == len(named) and by_patient.patients == 16
    found = result.descriptors["contrast"]
    assert found.flagged.images == 9 and found.flagged.near >= 7 and found.copies.p_value < found.flagged.level


def test_distances_equal_numpy(result, packed, planted):
    """Brute force from the stored counts: area means of standardised cubes, root mean square, both ways round, within the field of view
    and its mirror image."""
    real = Dataset(packed)
    mean, std = (np.array(v)[:, None, None] for v in (real.stats.mean_C, real.stats.std_C))
    fov_HW = np.mean([cube.fov_HW for cube in real.cubes("train")], axis=0) >= 0.95
    fov_HW &= fov_HW[:, ::-1]

    def pooled(cube):
        return (fov_HW * cube.data_CHW / 4095 - mean) / std  # 32 pixels, 32 cells: the area mean is the pixel

    train = np.stack([pooled(c) for c in real.cubes("train")])
    for pair in result.descriptors["pooled"].closest:
        x = pooled(planted.cube("synthetic", pair.synthetic_index))
        distances = np.sqrt([((train - view) ** 2).mean((1, 2, 3)) for view in (x, x[..., ::-1])])
        assert pair.distance == pytest.approx(distances.min(), rel=1e-4)
        assert pair.train_index == distances.min(0).argmin()


def test_floor_is_of_other_people(result, packed):
    assert [(part.split, part.n) for part in result.held_out] == [("val", 40)]
    assert result.descriptors["pooled"].floor_to_train.min > 0


def test_an_honest_set_has_no_copies(packed, tmp_path):
    for i in range(20):
        cube = made_cube(i + 900)
        write_cube(tmp_path / "loose", replace(cube, meta=replace(cube.meta, subject_id="synthetic"), fov_HW=None))
    pack(tmp_path / "loose", tmp_path / "set", splits={"synthetic": 1.0})
    figures = audit(Dataset(packed), Dataset(tmp_path / "set"), AuditConfig()).descriptors["pooled"]
    assert figures.flagged.images == 0 and figures.by_patient.worst == ()
    assert all(pair.subject is None and pair.train_key is None for pair in figures.closest)  # nobody is named
    assert all(pair.of_floor_median > 0.15 for pair in figures.closest)  # planted ones stay below 0.1
    assert figures.duplicates.images == 0 and figures.repeated[0].distance > 0


def test_repeats_inside_the_set_are_found(packed, tmp_path):
    for i in range(8):
        cube = made_cube(900 + i // 2)
        write_cube(tmp_path / "loose", replace(cube, meta=replace(cube.meta, key=f"k{i}", subject_id="synthetic"), fov_HW=None))
    pack(tmp_path / "loose", tmp_path / "set", splits={"synthetic": 1.0})
    found = audit(Dataset(packed), Dataset(tmp_path / "set"), AuditConfig()).descriptors["pooled"]
    assert found.duplicates.images == found.duplicates.exact == 8 and found.duplicates.share == 1 and found.duplicates.p_value < 0.01
    assert {pair.keys for pair in found.repeated[:4]} == {("k0", "k1"), ("k2", "k3"), ("k4", "k5"), ("k6", "k7")}
    assert found.repeated[0].distance == 0


def test_backends_agree(packed, planted, result):
    other = audit(Dataset(packed), planted, AuditConfig(backend="torch"))
    assert other.descriptors == result.descriptors


def test_own_person_does_not_count():
    reference, group = np.array([[0.0], [0.1], [1.0]]), np.array([0, 0, 1])
    assert near((reference, reference), reference, group, own_N=group).index_N.tolist() == [2, 2, 1]
    alone = near((reference, reference), reference, np.zeros(3, int), own_N=np.zeros(3, int))
    assert np.isinf(alone.distance_N).all() and (alone.index_N == -1).all()


def trained_alone(folder, subject=lambda i: f"t{i // 2}", count=32):
    """A real set of which nobody is held out."""
    for i in range(count):
        write_cube(folder / "loose", made_cube(i, subject=subject(i)))
    pack(folder / "loose", folder / "set", splits={"train": 1.0})
    return Dataset(folder / "set")


def test_without_held_out_people_the_training_set_is_its_own_yardstick(planted, tmp_path):
    figures = audit(trained_alone(tmp_path), planted, AuditConfig()).descriptors["pooled"]
    assert "nobody was held out" in figures.yardstick and figures.floor_to_train.min > 0  # own images do not count
    assert closest(audit(trained_alone(tmp_path), planted, AuditConfig()), "pooled")["mirrored"].flagged and figures.copies.people == 7


def test_one_person_alone_is_no_yardstick_but_gets_an_answer(planted, tmp_path):
    result = audit(trained_alone(tmp_path, lambda i: "anna", 4), planted, AuditConfig())
    figures = result.descriptors["pooled"]
    assert figures.floor_to_train is None and figures.flagged.below_min is None and len(figures.closest) == 12
    assert all(
        row.floor is None for row in rows_of_audit(result) if "for rounding" not in row.metric and "flagged in all" not in row.metric
    )
    json.dumps(asdict(result), allow_nan=False)


def copied_set(folder, cubes):
    """Stored cubes as a synthetic set."""
    for i, cube in enumerate(cubes):
        meta = replace(cube.meta, key=f"k{i:02d}", subject_id="synthetic", notes={})
        write_cube(folder / "loose", replace(cube, meta=meta, labels_HW=None, fov_HW=None))
    pack(folder / "loose", folder / "set", splits={"synthetic": 1.0})
    return Dataset(folder / "set")


@pytest.mark.parametrize("saved_again", [False, True], ids=["the same", "saved again"])
def test_a_real_double_is_left_out_of_the_floor_named_and_hides_no_copy(tmp_path, saved_again):
    """One picture in train and val under two names: five exact copies stay five, and the floor is that of the others."""
    for i in range(12):
        write_cube(tmp_path / "loose", made_cube(i, subject=f"t{i}", split="train"))
    noise = np.random.default_rng(0).integers(-2, 3, made_cube(3).data_CHW.shape) if saved_again else 0
    for i in range(5):
        write_cube(tmp_path / "loose", made_cube(i + 50, subject=f"v{i}", split="val"))
    double = made_cube(3)
    data = (double.data_CHW.astype(int) + noise).clip(0, 4095).astype(np.uint16)
    double = replace(double, data_CHW=data, meta=replace(double.meta, key="again", subject_id="v9", notes={"split": "val"}))
    write_cube(tmp_path / "loose", double)
    pack(tmp_path / "loose", tmp_path / "real")
    real = Dataset(tmp_path / "real")
    made = copied_set(tmp_path / "made", [*(made_cube(i) for i in range(4, 9)), *(made_cube(i + 900) for i in range(5))])
    figures = audit(real, made, AuditConfig()).descriptors["pooled"]
    assert figures.floor_doubles.images == 1 and figures.floor_doubles.pairs[0].keys == ("again", "c0003")
    assert figures.floor_to_train.min > 0.1 and figures.copies.people == 5
    assert figures.flagged.below_min == figures.flagged.exact == figures.flagged.images == 5
    assert {row.subject for row in figures.by_patient.worst} == {f"t{i}" for i in range(4, 9)}


def test_exact_copies_are_flagged_without_any_yardstick(tmp_path):
    """One person alone: nothing to measure by, but what is the same is the same."""
    made = copied_set(tmp_path / "made", [made_cube(2), made_cube(900)])
    figures = audit(trained_alone(tmp_path, lambda i: "anna", 4), made, AuditConfig()).descriptors["pooled"]
    assert figures.flagged.exact == figures.flagged.images == 1 and figures.closest[0].subject == "anna"
    assert figures.closest[1].subject is None and "training images, but for rounding" in figures.verdict[0]


def test_one_trained_person_beside_others_held_out_has_a_scale_too(tmp_path):
    """A copy but for rounding, and a real picture saved again under another name, are told from what merely is alike."""
    for i in range(3):
        write_cube(tmp_path / "loose", made_cube(i, subject="anna", split="train"))
        write_cube(tmp_path / "loose", made_cube(i + 50, subject=f"v{i}", split="val"))

    def again(cube, **meta):
        data = cube.data_CHW.copy()
        data[0, 0, 0] ^= 1
        return replace(cube, data_CHW=data, meta=replace(cube.meta, **meta))

    write_cube(tmp_path / "loose", again(made_cube(1), key="again", subject_id="v9", notes={"split": "val"}))
    pack(tmp_path / "loose", tmp_path / "real")
    made = copied_set(tmp_path / "made", [again(made_cube(2)), made_cube(900)])
    figures = audit(Dataset(tmp_path / "real"), made, AuditConfig()).descriptors["pooled"]
    assert figures.flagged.exact == figures.flagged.images == 1
    assert figures.floor_doubles.images == 1 and figures.floor_to_train.min > 0.1


def test_refusals(packed, planted, tmp_path):
    real = Dataset(packed)
    with pytest.raises(InputError, match="did you mean 'val'"):
        audit(real, planted, AuditConfig(against=("vall",)))
    with pytest.raises(InputError, match="did you mean 'train'"):
        audit(real, planted, AuditConfig(train="trian"))
    source = {"sample": {"dataset": "0" * 64}}
    write_manifest(tmp_path, replace(read_manifest(planted.path), source=source))
    for shard in planted.path.glob("synthetic-*"):
        (tmp_path / shard.name).symlink_to(shard)
    with pytest.raises(InputError, match="trained on dataset 000000000000"):
        audit(real, Dataset(tmp_path), AuditConfig())


def test_it_never_says_that_a_set_is_safe(result):
    words = (json.dumps(asdict(result)) + audit_module.CAVEAT).lower()
    assert "private" not in words and "safe" not in words


def test_command(packed, planted, tmp_path, result):
    words = ["audit", "--real", str(packed), "--synthetic", str(planted.path), "--out", str(tmp_path / "a.json")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "mirrored" in done.output and "flagged" in done.output and "do not show" in done.output
    assert "private" not in done.output.lower()
    assert json.loads((tmp_path / "a.json").read_text())["format"] == "retinaforge-audit-3"
    assert read_result(tmp_path / "a.json", AuditResult) == result
    assert json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)["descriptors"].keys() == {"pooled", "contrast"}


def test_the_set_without_its_copies(packed, planted, tmp_path):
    """What was flagged, and nothing else, is gone; the rest is what it was; the same command again finds it done."""
    words = ["audit", "--real", str(packed), "--synthetic", str(planted.path), "--out", str(tmp_path / "a.json")]
    for _ in range(2):
        done = CliRunner().invoke(app, [*words, "--remove", str(tmp_path / "left")])
        assert done.exit_code == 0 and "without 9 that were flagged" in done.output, done.output
    left, gone = Dataset(tmp_path / "left"), {name for name in COPIES if name != "rolled"}
    assert set(left.keys("synthetic")) == set(planted.keys("synthetic")) - gone
    assert {row.split(",")[0] for row in (tmp_path / "a.flagged.csv").read_text().splitlines()[1:]} == gone
    for i, key in enumerate(left.keys("synthetic")):
        np.testing.assert_array_equal(
            left.cube("synthetic", i).data_CHW, planted.cube("synthetic", planted.keys("synthetic").index(key)).data_CHW
        )
    assert left.manifest.source["removed"]["of"] == planted.digest
    again = CliRunner().invoke(
        app, [*words[:3], "--synthetic", str(left.path), "--out", str(tmp_path / "b.json"), "--remove", str(tmp_path / "none")]
    )
    assert again.exit_code == 0 and "nothing is removed" in again.output and not (tmp_path / "none").exists()
    with pytest.raises(InputError, match="another set"):
        flagged_keys(tmp_path / "a.json", left, audit_module.FORMAT)


def test_a_set_that_grew_is_searched_where_it_is_new(packed, tmp_path, monkeypatch):
    """And what is said of it is what a fresh search says."""
    real, done = Dataset(packed), []
    measured = units_module.Descriptors.measured
    monkeypatch.setattr(units_module.Descriptors, "measured", lambda self, piece: (done.append(piece.name), measured(self, piece))[1])

    def a_set(folder, count):  # an image a shard
        cubes = (replace(made_cube(900 + i), meta=replace(made_cube(900 + i).meta, key=f"k{i:02d}"), fov_HW=None) for i in range(count))
        write_dataset(folder, {"synthetic": cubes}, source={}, shard_mib=0)
        return Dataset(folder)

    monkeypatch.setattr(units_module, "GROUP", 7)
    small, large = a_set(tmp_path / "small", 20), a_set(tmp_path / "large", 30)
    for made in (small, large):
        for _, phase in audit_module.Audit(real, made, AuditConfig(), tmp_path / "audit.json").phases():
            found = phase().complete()
    assert len(done) == len(set(done)) == 30 + sum(entry.split != "test" for entry in real.manifest.shards)
    assert found == audit(real, large, AuditConfig())


def test_a_set_that_changes_meanwhile_has_no_verdict(packed, planted, tmp_path):
    """It is said, and the units of what did not change stay."""
    folder = tmp_path / "set"
    shutil.copytree(planted.path, folder)
    units = audit_module.Audit(Dataset(packed), Dataset(folder), AuditConfig(), tmp_path / "audit.json")
    phases = [phase for _, phase in units.phases()]
    for phase in phases[:-1]:
        phase().complete()
    manifest = read_manifest(folder)
    write_manifest(folder, replace(manifest, scale=2 * manifest.scale))
    with pytest.raises(TryAgain, match="changed while it was searched"):
        phases[-1]().complete()
    assert not (tmp_path / "audit.json").exists()


def test_descriptors_that_are_not_finite_name_the_image(packed, planted, monkeypatch):
    views = descriptors.Pooled.views

    def second_is_nan(self, x_BCHW):
        return tuple(np.where(np.arange(len(x_BCHW))[:, None] == 1, np.nan, view_BD) for view_BD in views(self, x_BCHW))

    monkeypatch.setattr(descriptors.Pooled, "views", second_is_nan)
    with pytest.raises(InputError, match="image c0001 has no finite descriptor in pooled"):
        audit(Dataset(packed), planted, AuditConfig())


def test_a_person_on_both_sides_is_refused(planted, tmp_path):
    for i in range(8):
        write_cube(tmp_path / "loose", made_cube(i, subject=f"p{i // 2}"))
    pack(tmp_path / "loose", tmp_path / "set", splits={"train": 0.5, "val": 0.5})
    real = Dataset(tmp_path / "set")
    names = real.subjects("train")
    real.subjects = lambda split: names if split == "train" else [names[0]] * real.count(split)
    with pytest.raises(InputError, match=f"1 people are in split 'train' and held out, such as {names[0]}"):
        audit(real, planted, AuditConfig())


@pytest.mark.parametrize("words", [("audit", "demo", "--rate", "0.05"), ("evaluate", "demo", "--limit", "8")])
def test_options_that_a_run_would_not_heed_are_refused(words):
    assert isinstance(CliRunner().invoke(app, list(words)).exception, InputError)
