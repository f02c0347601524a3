"""The form of what an audit says: of each feature space the distances, the verdicts, and whom they concern."""

from __future__ import annotations

from dataclasses import dataclass

from ldm.authenticity.verdicts import CloserToTraining, CopyRate, DataCopying, Repeats, Share


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Least, 1 %, 5 %, median and greatest of finite distances."""

    min: float
    p1: float
    p5: float
    median: float
    max: float


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How many nearest distances lie between two of the edges.

    Attributes:
        edges: one more than there are counts.
        synthetic, held_out, training: of synthetic images, of people held out, and of training people to one another.
    """

    edges: tuple[float, ...]
    synthetic: tuple[int, ...]
    held_out: tuple[int, ...]
    training: tuple[int, ...]


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
    """Real images that are one picture under two names and two people, left out of every yardstick.

    Attributes:
        images: how many.
        pairs: the closest of them.
    """

    images: int
    pairs: tuple[AlikePair, ...]


@dataclass(frozen=True, kw_only=True)
class Flagged:
    """Images that are taken for copies; of an honest set, with a probability of 1 - `level`, none.

    Attributes:
        below_min: images nearer to a training image than anybody of the yardstick, which is not yet a reason; None without one.
        images: flagged in all, for one of the reasons that follow.
        exact: training images, but for rounding.
        near: so near, for how the next people lie, that it is no chance (ldm/authenticity/ratio.py).
        beyond_chance: the nearest of those below the threshold, as many as chance does not explain.
        level: how often this space may flag anything of an honest set.
        dimension: m, of which the p-values of `near` are; None: they could not be had.
    """

    below_min: int | None
    images: int
    exact: int
    near: int
    beyond_chance: int
    level: float
    dimension: float | None


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
        of_floor_median: the distance over the median of real people's; None without any.
        p_value: that an honest image lies as near, of ranks among people held out; None without any.
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
    p_value: float | None
    mirrored: bool
    exact: bool
    flagged: bool


@dataclass(frozen=True, kw_only=True)
class SpaceVerdicts:
    """What the distances of one feature space say.

    Attributes:
        space: what gives the features, with seed or digest.
        d: dimensions.
        yardstick: whose distances are the yardstick, in words.
        synthetic_to_train, floor_to_train: nearest distances of the synthetic images, and of the yardstick's to other people; None of none.
        floor_doubles: real images that are there twice.
        flagged: images taken for copies.
        recognised: share of images of people held out that lie below the threshold of `copies` from another image of the same person:
            what this space sees of a person who is drawn anew, not copied. None: could not be had.
        copies: how many lie nearer than people held out do.
        ratio: the same of distances over those to the next people.
        nearer_than_real: images nearer to a training image than that one is to any of another person.
        closer_to_training: whether training people are nearest more often than people held out.
        data_copying: C_T.
        duplicates: the set beside itself; repeated: its closest pairs.
        verdict: all that in words.
    """

    space: str
    d: int
    yardstick: str
    synthetic_to_train: Quantiles
    floor_to_train: Quantiles | None
    histogram: Histogram
    floor_doubles: FloorDoubles
    flagged: Flagged
    recognised: float | None
    copies: CopyRate
    ratio: CopyRate
    nearer_than_real: Share
    closer_to_training: CloserToTraining
    data_copying: DataCopying
    duplicates: Repeats
    repeated: tuple[RepeatedPair, ...]
    by_patient: ByPatient
    closest: tuple[ClosestPair, ...]
    verdict: tuple[str, ...]
