"""What a feature space can tell of people that no network was trained on: whose image it is, of which eye, how much of a biomarker.

A space that cannot tell people apart is no judge of images: whatever a generator does to an eye, it would not see. Features are whitened by
those of the training split, as they are when sets are compared. Chance is what labels shuffled over the same images give, so that images of
one person, which are no two draws, count as they should.

Legend: N image, P person, D feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from data_shards import durable
from data_shards.cube import CubeMeta
from data_shards.errors import InputError
from data_shards.reading.batch import Batch
from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from ldm.checkpoints.trained import trained_digest
from ldm.evaluation.features import EXTRACTORS, ONLY_ASKED, Extractor, get_extractor
from ldm.evaluation.sets import common_fov, evenly, reflectance
from ldm.evaluation.torchscript import same_script, script_digest
from ldm.evaluation.whitening import effective_rank, whitening
from ldm.threads import one_thread

FORMAT = "retinaforge-features-2"  # a new field of the result has a default, or the format another number
IMAGES = 1024  # of the training split, and of all others together, at most, evenly spaced
LEAST_PEOPLE = 4  # with two images each: of fewer no order of neighbours has a p-value below LEVEL
LEVEL = 0.01
SHUFFLES = 1999
PENALTIES = np.logspace(-1, 5, 13)
BIOMARKERS = ("biomarker_strength", "biomarker")
"""Names in a cube's notes, the first that is there: a number, or whether it is there at all."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Attributes:
    value: share of the images that were told right, or of the variance between people that was foretold (R²).
    chance: mean of the same with shuffled labels.
    p_value: of chance reaching the value.
    images, people: that it is of.
    reason: why there is none.
    """

    value: float | None = None
    chance: float | None = None
    p_value: float | None = None
    images: int = 0
    people: int = 0
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Worth:
    """One feature space.

    Attributes:
        extractor: its name, with digest or seed.
        dimension: D.
        effective_rank, effective_rank_whitened: of the probed images' features as they are, and whitened by the training split's.
        person: share of the images whose nearest other image is of the same person.
        eye: share of the images told right and left, by ridge regression on the training split.
        biomarker: R² of the people's biomarker, by ridge regression on the training split.
        refused: why it is no judge of images; None where it is one, or where that cannot be known.
    """

    extractor: str
    dimension: int
    effective_rank: float | None = None
    effective_rank_whitened: float | None = None
    person: Probe
    eye: Probe
    biomarker: Probe
    refused: str | None = None


@dataclass(frozen=True, kw_only=True)
class Probed:
    """RUN/features.json.

    Attributes:
        dataset: digest.
        encoder: digest of the trained feature encoder's checkpoint.
        held_out: whether the probed people are held out of training; else there are too few of them, and it is all people.
        spaces: by the name that asks for an extractor.
        left_out: extractors that could not be had, and why.
    """

    format: str = FORMAT
    dataset: str
    encoder: str
    held_out: bool
    spaces: dict[str, Worth] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def knows(self, extractor: str) -> bool:
        """Whether it says of an extractor, as it is now, what it is worth, or why that could not be had."""
        if extractor in self.spaces:
            return same_script(extractor, self.spaces[extractor].extractor)
        return extractor in self.left_out and script_digest(extractor) is None


Watch = Callable[[Iterable[tuple[str, Batch]]], Iterable[tuple[str, Batch]]]
"""Wraps what passes as images are read, of each batch its split and itself, to show progress."""


def probe(dataset: Dataset, encoder: Path, path: Path, *, asked: Sequence[str] = (), device: str = "cpu", watch: Watch = iter) -> Probed:
    """Probe every extractor that needs no setting, and those that are asked for, and write the result.

    Args:
        encoder: folder of a trained feature encoder.
        asked: further extractors, with their settings.
    """
    extractors, left_out = {}, {}
    for name in sorted({*EXTRACTORS.keys() - set(ONLY_ASKED), *asked}):
        try:
            how = {"wavelengths_nm": dataset.wavelengths_nm, "learned": encoder, "device": device}
            extractors[name] = get_extractor(name, dataset.stats, **how)
        except InputError as error:
            left_out[name] = str(error)
    train = [(dataset.stats.split, i) for i in evenly(dataset.count(dataset.stats.split), IMAGES).tolist()]
    probed, held_out = probed_images(dataset)
    both = list(dict.fromkeys([*train, *probed]))
    features = features_of(extractors, dataset, both, device, watch)
    place = {image: n for n, image in enumerate(both)}
    train_N, probed_N = (np.array([place[image] for image in images]) for images in (train, probed))
    metas = [dataset.meta(*image) for image in both]
    spaces = {
        name: worth(
            extractor,
            features[name][train_N],
            [metas[n] for n in train_N],
            features[name][probed_N],
            [metas[n] for n in probed_N],
        )
        for name, extractor in extractors.items()
    }
    digest = trained_digest(encoder)
    assert digest is not None, "the learned extractor was loaded from it"
    result = Probed(dataset=dataset.digest, encoder=digest, held_out=held_out, spaces=spaces, left_out=left_out)
    durable.write_json(path, asdict(result))
    return result


def probed_images(dataset: Dataset) -> tuple[list[tuple[str, int]], bool]:
    """(split, sample) of people held out of training, and True; of all people, and False, where too few are held out."""
    train = dataset.stats.split
    held_out = [(split, i) for split, info in dataset.splits.items() if split != train for i in range(info.count)]
    of_person: dict[str, int] = {}
    for split in dict.fromkeys(split for split, _ in held_out):
        for subject in dataset.subjects(split):
            of_person[subject] = of_person.get(subject, 0) + 1
    enough = sum(count > 1 for count in of_person.values()) >= LEAST_PEOPLE
    images = held_out if enough else [(split, i) for split, info in dataset.splits.items() for i in range(info.count)]
    return [images[i] for i in evenly(len(images), IMAGES)], enough


def features_of(
    extractors: dict[str, Extractor], dataset: Dataset, images: Sequence[tuple[str, int]], device: str, watch: Watch
) -> dict[str, np.ndarray]:
    """Features (N, D) of images by the name of each extractor; each image is read once."""
    samples = {split: np.array([i for of, i in images if of == split]) for split in dict.fromkeys(split for split, _ in images)}
    batches = (
        (split, batch)
        for split, wanted in samples.items()
        for batch in CubeStream(dataset, split, batch_size=8, device=device).each(wanted)
    )
    found: dict[str, dict[tuple[str, int], np.ndarray]] = {name: {} for name in extractors}
    fov_HW = common_fov(dataset, dataset.stats.split)
    for split, batch in watch(batches):
        x_BCHW = reflectance(dataset, batch.cubes_BCHW, device, fov_HW)
        for name, extractor in extractors.items():
            found[name] |= {(split, i): feature for i, feature in zip(batch.sample_B.tolist(), extractor(x_BCHW).numpy(), strict=True)}
    return {name: np.stack([of_image[image] for image in images]) for name, of_image in found.items()}


def worth(
    extractor: Extractor, train_ND: np.ndarray, train: Sequence[CubeMeta], probed_ND: np.ndarray, probed: Sequence[CubeMeta]
) -> Worth:
    """What one feature space tells, from features and what is known of their images."""
    about = {"extractor": extractor.name, "dimension": extractor.dimension}
    bad = int((~np.isfinite(train_ND).all(1)).sum() + (~np.isfinite(probed_ND).all(1)).sum())
    white = whitening(train_ND) if not bad else None
    if white is None:
        why = f"features of {bad} images are not finite" if bad else "the training images do not differ in its features"
        none = Probe(reason=why)
        return Worth(**about, person=none, eye=none, biomarker=none, refused=why)
    a_ND, b_ND = white(train_ND), white(probed_ND)
    person = person_probe(b_ND, [meta.subject_id for meta in probed])
    refused = None
    if person.p_value is not None and person.p_value >= LEVEL:
        refused = (
            "it does not tell people apart: the nearest other image is of the same person "
            f"for {person.value:.0%} of {person.images} images, by chance {person.chance:.0%} (p = {person.p_value:.2g})"
        )
    return Worth(
        **about,
        effective_rank=_rank(probed_ND),
        effective_rank_whitened=_rank(b_ND),
        person=person,
        eye=eye_probe(a_ND, train, b_ND, probed),
        biomarker=biomarker_probe(a_ND, train, b_ND, probed),
        refused=refused,
    )


def person_probe(x_ND: np.ndarray, subjects: Sequence[str]) -> Probe:
    """Share of the images, of people with two or more, whose nearest other image is of the same person."""
    _, person_N, count_P = np.unique(np.asarray(subjects), return_inverse=True, return_counts=True)
    several_N = count_P[person_N] > 1
    people = int((count_P > 1).sum())
    if people < LEAST_PEOPLE:
        return Probe(people=people, reason=f"{people} people with two or more images, at least {LEAST_PEOPLE} wanted")
    with one_thread():
        square_N = (x_ND**2).sum(1)
        distance_NN = square_N[:, None] - 2 * x_ND @ x_ND.T + square_N[None]
    np.fill_diagonal(distance_NN, np.inf)
    nearest_N = distance_NN.argmin(1)

    def share(label_N: np.ndarray) -> float:
        return float((label_N[nearest_N] == label_N)[several_N].mean())

    return _against_chance(share, person_N, images=int(several_N.sum()), people=people)


def eye_probe(train_ND: np.ndarray, train: Sequence[CubeMeta], probed_ND: np.ndarray, probed: Sequence[CubeMeta]) -> Probe:
    """Share of the images whose eye a linear classifier of the training images tells: right or left.

    Chance shuffles the sides over eyes, with all images of each: visits of one eye look alike, and are not told right one by one.
    """
    sides = [np.array([{"OD": 1.0, "OS": -1.0}.get(meta.eye, 0.0) for meta in metas]) for metas in (train, probed)]
    if not all({1.0, -1.0} <= set(side_N.tolist()) for side_N in sides):
        return Probe(reason="no images of both eyes, told apart as OD and OS")
    known = [side_N != 0 for side_N in sides]
    foretold_N = np.sign(_ridge(train_ND[known[0]], sides[0][known[0]], probed_ND[known[1]]))
    eyes = [f"{meta.subject_id} {meta.eye}" for meta, is_known in zip(probed, known[1], strict=True) if is_known]
    people = len({meta.subject_id for meta, is_known in zip(probed, known[1], strict=True) if is_known})
    _, first_E, eye_N = np.unique(eyes, return_index=True, return_inverse=True)
    side_E = sides[1][known[1]][first_E]
    return _against_chance(lambda label_E: float((label_E[eye_N] == foretold_N).mean()), side_E, images=len(foretold_N), people=people)


def biomarker_probe(train_ND: np.ndarray, train: Sequence[CubeMeta], probed_ND: np.ndarray, probed: Sequence[CubeMeta]) -> Probe:
    """R² over people of a number that stands in the cubes' notes, of the mean of what is foretold of each person's images."""
    name = next((name for name in BIOMARKERS if all(_is_number(meta.notes.get(name)) for meta in (*train, *probed))), None)
    if name is None:
        return Probe(reason="no biomarker in the notes of all images")
    values = [np.array([float(meta.notes[name]) for meta in metas]) for metas in (train, probed)]
    people, person_N = np.unique([meta.subject_id for meta in probed], return_inverse=True)
    images_P = np.bincount(person_N)
    true_P, foretold_P = (np.bincount(person_N, v_N) / images_P for v_N in (values[1], _ridge(train_ND, values[0], probed_ND)))
    expected = values[0].mean()  # of who knows the training people alone
    if len(people) < LEAST_PEOPLE or not np.ptp(values[0]) or not ((true_P - expected) ** 2).sum():
        return Probe(people=len(people), reason=f"{name} does not vary, or is known of {len(people)} people alone")

    def r_squared(label_P: np.ndarray) -> float:
        return float(1 - ((label_P - foretold_P) ** 2).sum() / ((label_P - expected) ** 2).sum())

    return _against_chance(r_squared, true_P, images=len(probed), people=len(people))


def _against_chance(figure: Callable[[np.ndarray], float], labels: np.ndarray, *, images: int, people: int) -> Probe:
    """A figure of labels beside the same of shuffled ones: p = (1 + how many reach it) / (1 + how many) (Phipson and Smyth 2010).

    Args:
        labels: of what may be exchanged: images, eyes or people.
    """
    value, rng = figure(labels), np.random.default_rng((people, images))
    shuffled = np.array([figure(rng.permutation(labels)) for _ in range(SHUFFLES)])
    p_value = (1 + int((shuffled >= value).sum())) / (1 + SHUFFLES)
    return Probe(value=value, chance=float(shuffled.mean()), p_value=p_value, images=images, people=people)


def _ridge(train_ND: np.ndarray, y_N: np.ndarray, probed_ND: np.ndarray) -> np.ndarray:
    """What ridge regression foretells, its penalty chosen by leave-one-out on the training images (Golub, Heath and Wahba 1979)."""
    from sklearn.linear_model import RidgeCV

    with one_thread():
        return RidgeCV(alphas=PENALTIES).fit(train_ND, y_N).predict(probed_ND)


def _rank(x_ND: np.ndarray) -> float | None:
    """Effective rank of the features' covariance; None of a single image, or where they are all the same."""
    if len(x_ND) < 2 or not np.ptp(x_ND, axis=0).any():
        return None
    with one_thread():
        return effective_rank(np.linalg.eigvalsh(np.atleast_2d(np.cov(x_ND.T))).clip(0))


def _is_number(value: object) -> bool:
    return isinstance(value, (bool, int, float))
