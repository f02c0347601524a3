"""Probes tell a space that knows people from one that does not, and say what they cannot know."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from data_shards.cube import CubeMeta
from data_shards.errors import CorruptData
from ldm.evaluation import probes
from ldm.evaluation.features import refusal
from ldm.evaluation.probes import person_probe, worth

KNOWS = SimpleNamespace(name="knows", dimension=6, refused=None)


def people(count: int, *, images: int = 4, seed: int = 0, biomarker: bool = True, eyes: bool = True) -> tuple[np.ndarray, list[CubeMeta]]:
    """Features of so many people: four numbers that are theirs, one that is the eye's, a biomarker, and noise."""
    rng = np.random.default_rng(seed)
    rows, metas = [], []
    for p in range(count):
        own, marker = rng.normal(size=4), rng.normal()
        for i in range(images):
            side = 1 if i % 2 else -1
            rows.append([*own, side, marker] + 0.2 * rng.normal(size=6))
            notes = {"biomarker_strength": marker} if biomarker else {}
            eye = ("OD" if side > 0 else "OS") if eyes else ""
            meta = {"key": f"p{seed}-{p}-{i}", "wavelengths_nm": (500.0,), "scale": 1.0, "subject_id": f"s{seed}-{p}", "eye": eye}
            metas.append(CubeMeta(**meta, notes=notes))
    return np.array(rows), metas


def test_a_space_that_knows_people_is_a_judge_and_tells_eye_and_biomarker():
    found = worth(KNOWS, *people(30), *people(10, seed=1))
    assert found.refused is None and found.person.value > 0.9 and found.person.p_value < 0.01
    assert found.person.chance == pytest.approx(3 / 39, abs=0.03), "three of the 39 others are of the same person"
    assert found.eye.value > 0.95 and found.eye.chance == pytest.approx(0.5, abs=0.05)
    assert found.biomarker.value > 0.8 and found.biomarker.people == 10
    assert 1 < found.effective_rank <= 6


def test_a_space_that_does_not_is_refused_with_its_figures():
    rng, (train_ND, train), (probed_ND, probed) = np.random.default_rng(0), people(30), people(10, seed=1)
    found = worth(KNOWS, rng.normal(size=train_ND.shape), train, rng.normal(size=probed_ND.shape), probed)
    assert "does not tell people apart" in found.refused and found.person.p_value >= 0.01
    assert abs(found.eye.value - 0.5) < 0.25 and found.biomarker.value < 0.3


@pytest.mark.parametrize(("spoil", "said"), [(np.nan, "features of 2 images are not finite"), (None, "do not differ")])
def test_features_that_are_none_are_refused(spoil, said):
    (train_ND, train), (probed_ND, probed) = people(6), people(6, seed=1)
    train_ND[:] = train_ND if spoil is not None else 1.0
    probed_ND[:2, 0] = probed_ND[:2, 0] if spoil is None else spoil
    found = worth(KNOWS, train_ND, train, probed_ND, probed)
    assert said in found.refused and found.person.value is None and said in found.person.reason


def test_what_the_data_cannot_bear_is_left_out_with_its_reason_and_refuses_nobody():
    alone = worth(KNOWS, *people(8, images=1, biomarker=False, eyes=False), *people(8, images=1, seed=1, biomarker=False, eyes=False))
    assert alone.refused is None
    assert "0 people with two or more images" in alone.person.reason
    assert "OD and OS" in alone.eye.reason and "no biomarker" in alone.biomarker.reason


def test_people_of_one_image_are_neighbours_but_not_asked_about():
    x_ND, metas = people(6)
    others_ND, others = people(5, images=1, seed=2)
    found = person_probe(np.concatenate([x_ND, others_ND]), [meta.subject_id for meta in (*metas, *others)])
    assert (found.images, found.people) == (24, 6)


def test_a_refusal_holds_for_the_very_network_that_was_probed(tmp_path):
    path = tmp_path / "features.json"
    assert refusal(path, "learned abc") is None
    path.write_text(json.dumps({"spaces": {"learned": {"extractor": "learned abc", "refused": "blind"}}}))
    assert refusal(path, "learned abc") == "blind" and refusal(path, "learned def") is None
    path.write_text("[]")
    with pytest.raises(CorruptData, match="damaged result of probes"):
        refusal(path, "learned abc")


def test_features_that_know_no_side_are_seldom_found_to_know_it(monkeypatch):
    """Eight images of each eye, alike, and nothing that tells right from left: chance has to take an eye's images as one."""
    monkeypatch.setattr(probes, "SHUFFLES", 199)
    rng, found = np.random.default_rng(0), []
    for _ in range(24):
        sets = []
        for count in (24, 8):
            metas = [SimpleNamespace(subject_id=str(p), eye=eye) for p in range(count) for eye in ("OD", "OS") for _ in range(8)]
            sets += [rng.normal(size=(2 * count, 8)).repeat(8, 0) + 0.1 * rng.normal(size=(16 * count, 8)), metas]
        found.append(probes.eye_probe(*sets).p_value <= 0.05)
    assert sum(found) <= 4
