"""The form of what an audit says of one descriptor: distances beside those between real people, copies, repeats, and whom they concern."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Least, 1 %, 5 %, median and greatest of finite distances."""

    min: float
    p1: float
    p5: float
    median: float
    max: float


@dataclass(frozen=True, kw_only=True)
class AlikePair:
    """Two images, by their keys, and their distance."""

    keys: tuple[str, str]
    distance: float


@dataclass(frozen=True, kw_only=True)
class RepeatedPair(AlikePair):
    """Two images of one set; `mirrored`: one is nearest to the other's mirror image."""

    mirrored: bool


@dataclass(frozen=True, kw_only=True)
class FloorDoubles:
    """The floor's images that are pictures of the training set under another name, left out of the floor.

    Attributes:
        images: how many.
        pairs: the closest of them, each with its training image.
    """

    images: int
    pairs: tuple[AlikePair, ...]


@dataclass(frozen=True, kw_only=True)
class Flagged:
    """Synthetic images nearer to training images than any of the floor's. Without a floor all but level, people, exact and images is None.

    Attributes:
        below_min: how many.
        expected, p_value, telling, at_least: what chance makes of that number: ldm/authenticity/chance.py.
        level: of one descriptor: how often an honest set may be accused.
        people: whose distances the floor's are.
        exact: images that are training images, but for rounding.
        images: flagged in all.
        share_below_p1: share within the nearest 1 % of the floor's distances.
        floor_share_below_p1: of the floor's own images; it differs from 0.01 where the floor is small.
    """

    below_min: int | None
    expected: float | None = None
    p_value: float | None = None
    telling: int | None = None
    at_least: int | None = None
    level: float
    people: int
    exact: int
    images: int
    share_below_p1: float | None
    floor_share_below_p1: float | None


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Synthetic images nearer to another synthetic image than the floor's least distance: a generator that repeats itself.

    Attributes:
        images, share: how many, and of all; None without a floor.
        exact: images that are another one, but for rounding.
        expected: images that an honest set has there, about.
        closest: the closest pairs.
        distances: of each image to the nearest other one; None of a single image.
    """

    share: float | None = None
    images: int | None = 0
    exact: int = 0
    expected: float | None = None
    closest: tuple[RepeatedPair, ...] = ()
    distances: Quantiles | None = None


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A training patient of whom images are flagged.

    Attributes:
        flagged, exact: synthetic images flagged as copies of this patient's, and of these exact ones.
        nearest_to: synthetic images whose nearest training image is this patient's.
        least_distance: of these.
    """

    subject: str
    flagged: int
    exact: int
    nearest_to: int
    least_distance: float


@dataclass(frozen=True, kw_only=True)
class ByPatient:
    """Whom the flagged images concern; nobody else is named.

    Attributes:
        patients, patients_flagged: of the training set, and those with flagged images.
        largest_share_of_one_patient: of the synthetic images, by their nearest training image.
        worst: patients, most flagged images first.
    """

    patients: int
    patients_flagged: int
    largest_share_of_one_patient: float
    worst: tuple[Patient, ...]


@dataclass(frozen=True, kw_only=True)
class ClosestPair:
    """A synthetic image and the training image nearest to it, for people to look at.

    Attributes:
        synthetic_index, train_index: places of the images in their splits.
        train_key, subject: whose image it is; None where the pair is not flagged.
        of_floor_median: the distance over the floor's median; None without a floor.
        mirrored: nearest to the mirror image.
        exact: the training image, but for rounding.
    """

    synthetic_key: str
    synthetic_index: int
    train_key: str | None
    train_index: int
    subject: str | None
    distance: float
    of_floor_median: float | None
    mirrored: bool
    exact: bool
    flagged: bool


@dataclass(frozen=True, kw_only=True)
class DescriptorFigures:
    """What one descriptor says. Distances are root mean squares over the D numbers of a descriptor.

    Attributes:
        dimension: D.
        synthetic_to_train: nearest distances of the synthetic images.
        floor_to_train: those of the floor's, a person's own images not counted; None where there is one person alone.
        verdict: `flagged` in words.
        share_nearer_than_real: synthetic images nearer to their training image than that one is to any training image of
            another person (after AuthPct, Alaa et al. 2022, §3.3, with people in place of images).
        floor_share_nearer_than_real: the same among the floor's images; None without a floor.
        closest: the closest pairs.
    """

    dimension: int
    synthetic_to_train: Quantiles
    floor_to_train: Quantiles | None
    floor_doubles: FloorDoubles
    flagged: Flagged
    verdict: str
    share_nearer_than_real: float
    floor_share_nearer_than_real: float | None
    duplicates: Duplicates
    by_patient: ByPatient
    closest: tuple[ClosestPair, ...]
