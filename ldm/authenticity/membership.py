"""Whether a trained generator knows the people it was trained on better than people held out: membership inference, by person.

Attacks give each real image a score (attacks.py). How hard an image is decides most of it, whoever it is of: what brightness, contrast
and detail explain is taken out, by a regression that does not know who was trained on. A person's score is the mean over their images.
Training people are then compared with people held out. Where they differ even in what no network was asked for, they are not alike, and
there is no verdict.

Legend: N image, P person, T time, K measure of difficulty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.errors import InputError
from data_shards.reading.dataset import Dataset
from ldm.authenticity.attacks import ATTACKS, DIFFICULTY, attacked
from ldm.authenticity.separation import AtLowFpr, Separation, at_low_fpr, auc, holm, least_auc, separation
from ldm.checkpoints.trained import Autoencoder, Denoiser
from ldm.evaluation.intervals import LEAST_PEOPLE
from ldm.evaluation.measurements import Arrays, ImageMeasurements, Piece, beside, requested, written
from ldm.evaluation.sets import ImagesOfPeople, Part, Watch, evenly
from ldm.evaluation.tables import Row
from ldm.models import striped

FORMAT = "retinaforge-membership-1"  # a new field of the result has a default, or the format another number
TRAIN = "train"
LEVEL = 0.05  # of all attacks together: how often an honest model may be accused; of all yardsticks together, too
CAVEAT = (
    "An attack shows that a model gives its training people away. That these attacks fail shows only that they fail: others, of who trains "
    "models like it to compare with, see more. They were made with the networks in hand; whether the images alone give somebody away they "
    "do not ask."
)


@dataclass(frozen=True, kw_only=True)
class MembershipConfig:
    """
    Attributes:
        people: at most this many of each side, evenly spaced, each with all images.
        times: of the denoiser, whole numbers in [0, 1000), at which it is asked; draws: noises at each. seed: of them.
        batch_size, device: of the pass over the images.
    """

    people: int = 1000
    times: tuple[int, ...] = (300, 400, 500, 600)
    draws: int = 2
    seed: int = 0
    batch_size: int = 8
    device: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.people, self.draws, self.batch_size) < 1:
            given = f"people {self.people}, draws {self.draws}, batch_size {self.batch_size}"
            raise InputError(given, expected="1 or more of each")
        if not self.times or not all(0 < time < 1000 for time in self.times) or len(set(self.times)) < len(self.times):
            raise InputError(f"times {self.times}", expected="whole numbers from 1 to 999, each once")


@dataclass(frozen=True, kw_only=True)
class AttackFigures:
    """What one attack tells of people.

    Attributes:
        separation: of training people and people held out by their scores. p_holm: its p-value, corrected for the other attacks.
        at_low_fpr: training people found where hardly anybody else is taken for one.
        auc_by_time: area by time of the denoiser, as a string, for where it leaks; of the autoencoder none.
        reason: why there are no figures; None: there are.
    """

    separation: Separation | None = None
    p_holm: float | None = None
    at_low_fpr: AtLowFpr | None = None
    auc_by_time: dict[str, float]
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """How far a measure that no network was asked for tells the two sides apart: `separation`, two-sided, p_holm of all measures."""

    separation: Separation
    p_holm: float


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Attributes:
    attacks: by their names.
    yardsticks: by measure of difficulty.
    least_auc: the least area that would have been found in four of five cases; None: no area would.
    leaks: whether an attack tells training people from people held out; None: there is no verdict. verdict: that in words.
    reason: why there is no verdict, and what it would take.
    """

    attacks: dict[str, AttackFigures]
    yardsticks: dict[str, Yardstick]
    least_auc: float | None
    leaks: bool | None
    verdict: str
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class MembershipResult:
    """membership.json.

    Attributes:
        train, held_out: whose images were scored; of held_out one a split.
        people: so many training people, and people held out.
        autoencoder, denoiser: digests of the networks.
        level: how often an honest model may be accused.
        caveat: what the attacks cannot show.
    """

    format: str = FORMAT
    train: ImagesOfPeople
    held_out: tuple[ImagesOfPeople, ...]
    people: tuple[int, int]
    autoencoder: str
    denoiser: str
    config: MembershipConfig
    level: float = LEVEL
    judgement: Judgement
    caveat: str = CAVEAT


class Membership(ImageMeasurements):
    """The attacks in units: the scores of each shard's images; `result` judges them.

    Args:
        dataset: what the networks were trained on, with the people held out.
        path: file for the result, beside which the units lie; None: they are kept in memory.

    Raises:
        InputError: networks of another dataset or of each other's, no training split, a person on both sides.
    """

    def __init__(
        self, dataset: Dataset, autoencoder: Autoencoder, denoiser: Denoiser, config: MembershipConfig, path: Path | None = None
    ) -> None:
        dataset.expect("cube")
        _check_same(dataset, autoencoder, denoiser)
        self.autoencoder, self.denoiser, self.config, self.path = autoencoder, denoiser, config, path
        self.batch = striped.at_once(config.batch_size, *dataset.shape[1:])
        filled = [name for name, info in dataset.splits.items() if info.count]
        if TRAIN not in filled:
            raise InputError("no training images", where=dataset.path, expected=f"a split {TRAIN!r}: whom the networks were trained on")
        _check_apart(dataset, [name for name in filled if name != TRAIN])
        self.train = _of_people(dataset, [TRAIN], config.people)[0]
        self.held_out = _of_people(dataset, [name for name in filled if name != TRAIN], config.people)
        asked = {"format": FORMAT, "dataset": dataset.digest, "models": [autoencoder.digest, denoiser.digest], "config": requested(config)}
        super().__init__([self.train, *self.held_out], beside(path, asked))

    def measured(self, piece: Piece) -> Arrays:
        device, how = self.config.device, {"times": self.config.times, "draws": self.config.draws, "seed": self.config.seed}
        found: dict[str, list[np.ndarray]] = {name: [] for name in (*ATTACKS, *DIFFICULTY)}
        for batch in piece.batches(self.batch):
            fov_BHW = None if batch.fov_BHW is None else batch.fov_BHW.to(device)
            scores = attacked(self.autoencoder, self.denoiser, batch.cubes_BCHW.to(device), fov_BHW, **how)
            for name, values in scores.items():
                found[name].append(values.cpu().numpy())
        return {name: np.concatenate(of_batches) for name, of_batches in found.items()}

    def result(self) -> MembershipResult:
        """The judgement, of units that are all there."""
        parts = [self.train, *self.held_out]
        people = [person for part in parts for person in part.units()]
        member_N = np.repeat([part is self.train for part in parts], [len(part.sample_N) for part in parts])
        arrays = {name: np.concatenate([self.of(part, name) for part in parts]) for name in (*ATTACKS, *DIFFICULTY)}
        scores, difficulty = {name: arrays[name] for name in ATTACKS}, {name: arrays[name] for name in DIFFICULTY}
        members, others = len(set(self.train.units())), len(set(people)) - len(set(self.train.units()))
        return MembershipResult(
            train=self.train.described(),
            held_out=tuple(part.described() for part in self.held_out),
            people=(members, others),
            autoencoder=self.autoencoder.digest,
            denoiser=self.denoiser.digest,
            config=self.config,
            judgement=judged(scores, difficulty, people, member_N, times=self.config.times),
        )

    def finish(self) -> MembershipResult:
        return written(self.path, self.result(), self.out)


def membership(
    dataset: Dataset, autoencoder: Autoencoder, denoiser: Denoiser, config: MembershipConfig, watch: Watch = iter
) -> MembershipResult:
    """Attack a model, by this process alone.

    Raises:
        InputError: as Membership. CorruptData: damaged shards.
    """
    return Membership(dataset, autoencoder, denoiser, config).complete(watch)


def judged(
    scores: Mapping[str, np.ndarray],
    difficulty: Mapping[str, np.ndarray],
    people: list[str],
    member_N: np.ndarray,
    *,
    times: tuple[int, ...],
) -> Judgement:
    """Judge the scores of images.

    Args:
        scores: by attack, (N, T) for those that ask at `times`, else (N, 1).
        difficulty: by measure, (N,).
        people: person of each image. member_N: whether the person was trained on.
    """
    _, first_P, person_N = np.unique(people, return_index=True, return_inverse=True)
    member_P = np.asarray(member_N)[first_P]
    members, others = int(member_P.sum()), int((~member_P).sum())
    if min(members, others) < LEAST_PEOPLE:
        reason = f"{members} training people and {others} held out: at least {LEAST_PEOPLE} of each wanted"
        none = {name: AttackFigures(auc_by_time={}, reason=reason) for name in scores}
        return Judgement(attacks=none, yardsticks={}, least_auc=None, leaks=None, verdict=f"no verdict: {reason}", reason=reason)
    difficulty_NK = np.stack([np.asarray(values_N, np.float64) for values_N in difficulty.values()], axis=1)
    by_measure = {name: _of_persons(difficulty_NK[:, k], person_N) for k, name in enumerate(difficulty)}
    apart = {name: separation(x_P[member_P], x_P[~member_P], alternative="two-sided") for name, x_P in by_measure.items()}
    corrected = holm({name: found.p_value for name, found in apart.items()})
    yardsticks = {name: Yardstick(separation=found, p_holm=corrected[name]) for name, found in apart.items()}
    known, unfit = {}, {}
    for name, score_NT in scores.items():
        if bad := int((~np.isfinite(score_NT)).any(1).sum()):
            unfit[name] = f"scores of {bad} of {len(score_NT)} images are not finite"
        else:
            score_TN = [calibrated(np.asarray(score_N, np.float64), difficulty_NK) for score_N in score_NT.T]
            known[name] = np.stack([_of_persons(score_N, person_N) for score_N in score_TN])
    sides = {name: (score_TP.mean(0)[member_P], score_TP.mean(0)[~member_P]) for name, score_TP in known.items()}
    apart = {name: separation(*side) for name, side in sides.items()}
    corrected = holm({name: found.p_value for name, found in apart.items()})
    attacks = {name: AttackFigures(auc_by_time={}, reason=unfit.get(name)) for name in scores}
    for name, found in apart.items():
        at = times if len(known[name]) == len(times) else ()
        by_time = {str(time): auc(x_P[member_P], x_P[~member_P]) for time, x_P in zip(at, known[name], strict=False)}
        attacks[name] = AttackFigures(separation=found, p_holm=corrected[name], at_low_fpr=at_low_fpr(*sides[name]), auc_by_time=by_time)
    backwards = holm({name: separation(other_N, member_M).p_value for name, (member_M, other_N) in sides.items()})
    least = least_auc(members, others, level=LEVEL / max(1, len(corrected)))
    reason = _no_verdict(attacks, backwards, yardsticks)
    leaks = None if reason else min(corrected.values()) <= LEVEL
    verdict = f"no verdict: {reason}" if reason else _in_words(attacks, least, (members, others))
    return Judgement(attacks=attacks, yardsticks=yardsticks, least_auc=least, leaks=leaks, verdict=verdict, reason=reason)


def calibrated(score_N: np.ndarray, difficulty_NK: np.ndarray) -> np.ndarray:
    """Scores without what difficulty explains: residuals of a linear regression over all images, over their deviation.

    It does not know who was trained on, so that honest scores stay exchangeable between the sides, and its slopes cannot take a leak away.
    """
    design = np.column_stack([np.ones(len(score_N)), difficulty_NK])
    left_N = score_N - design @ np.linalg.lstsq(design, score_N, rcond=None)[0]
    deviation = left_N.std()
    return left_N / deviation if deviation > 1e-9 * max(1.0, np.abs(score_N).max()) else np.zeros_like(left_N)


def _of_persons(value_N: np.ndarray, person_N: np.ndarray) -> np.ndarray:
    return np.bincount(person_N, weights=value_N) / np.bincount(person_N)


def _no_verdict(attacks: Mapping[str, AttackFigures], backwards: Mapping[str, float], yardsticks: Mapping[str, Yardstick]) -> str | None:
    """Why the two sides cannot be compared; None: they can.

    Args:
        backwards: by attack, the p-value, corrected, of people held out being the better known.
    """
    told = [f"{name} (AUC {of.separation.auc:.2f}, p = {of.p_holm:.2g})" for name, of in yardsticks.items() if of.p_holm <= LEVEL]
    if told:
        return (
            f"training people and people held out differ already in {', '.join(told)}, which no network was asked for: other sites, "
            "cameras or times perhaps. It takes a split of people at random"
        )
    if not backwards:
        return "; ".join(sorted({of.reason for of in attacks.values() if of.reason}))
    if min(backwards.values()) <= min(LEVEL, *(of.p_holm for of in attacks.values() if of.p_holm is not None)):
        turned = ", ".join(f"{name} (AUC {attacks[name].separation.auc:.2f})" for name, p in backwards.items() if p <= LEVEL)
        return f"people held out are better known than training people, by {turned}: the two sides differ in something else"
    return None


def _in_words(attacks: Mapping[str, AttackFigures], least: float | None, people: tuple[int, int]) -> str:
    """The verdict, where there is one; it accuses by p-value, and never acquits."""
    seen = f"with {people[0]} training people and {people[1]} held out, " + (
        "no AUC could have been seen" if least is None else f"an AUC from {least:.2f} on would have been seen in four of five cases"
    )
    told = [
        f"{name} in {of.separation.auc:.0%} of pairs (95 % interval {of.separation.interval[0]:.0%} to {of.separation.interval[1]:.0%}, "
        f"p = {of.p_holm:.2g})"
        for name, of in attacks.items()
        if of.p_holm is not None and of.p_holm <= LEVEL
    ]
    if told:
        return f"the model gives away who was in its training set. A training person scores above one held out: by {'; by '.join(told)}"
    least_p = min(of.p_holm for of in attacks.values() if of.p_holm is not None)
    return f"these attacks do not tell training people from people held out (least p = {least_p:.2g}); {seen}"


def rows_of_membership(result: MembershipResult) -> list[Row]:
    """As a table for people: AUC by person, and how many training people are found; n: training / held-out people."""
    n, rows = f"{result.people[0]} / {result.people[1]}", []
    for name, of in result.judgement.attacks.items():
        found = of.separation
        if found is None:
            rows.append(Row(metric=f"{name}: AUC", value=None, floor=None, n=n, reason=of.reason))
            continue
        best = max(of.auc_by_time, key=of.auc_by_time.__getitem__, default=None)
        note = f"p = {of.p_holm:.2g}" + (f"; most at time {best}: {of.auc_by_time[best]:.2f}" if best else "")
        rows.append(Row(metric=f"{name}: AUC", value=found.auc, floor=found.expected, n=n, interval=found.interval, note=note))
        low = of.at_low_fpr
        rows.append(
            Row(metric=f"{name}: found", value=low.tpr, floor=low.expected, n=n, interval=low.interval, note=f"TPR at {low.fpr:.1%} FPR")
        )
    for name, of in result.judgement.yardsticks.items():
        found, note = of.separation, f"yardstick; p = {of.p_holm:.2g}"
        rows.append(Row(metric=f"{name}: AUC", value=found.auc, floor=found.expected, n=n, interval=found.interval, note=note))
    return rows


def _check_same(dataset: Dataset, autoencoder: Autoencoder, denoiser: Denoiser) -> None:
    trained_on = autoencoder.data["digest"]
    if trained_on != dataset.digest:
        raise InputError(
            f"networks trained on dataset {trained_on[:12]}",
            where=dataset.path,
            expected=f"{dataset.digest[:12]}, that of this one: who was trained on stands in its splits",
        )
    if denoiser.autoencoder != autoencoder.digest:
        raise InputError(
            f"a denoiser of the latents of autoencoder {denoiser.autoencoder[:12]}",
            expected=f"{autoencoder.digest[:12]}, that of this one",
            mend="retinaforge encode PRESET, then train diffusion PRESET, in a fresh folder",
        )


def _check_apart(dataset: Dataset, held_out: list[str]) -> None:
    trained = set(dataset.subjects(TRAIN))
    for split in held_out:
        if both := trained & set(dataset.subjects(split)):
            raise InputError(
                f"{len(both)} people on both sides, in the splits {TRAIN!r} and {split!r}",
                where=dataset.path,
                expected="all images of a person in one split",
                mend="retinaforge data pack FOLDER DATASET splits by person; then train on that",
            )


def _of_people(dataset: Dataset, splits: list[str], most: int) -> list[Part]:
    """All images of at most so many people, evenly spaced over the splits together; splits that give nobody are left out."""
    everybody = sorted({(split, person) for split in splits for person in dataset.subjects(split)})
    chosen = {everybody[i] for i in evenly(len(everybody), most)}
    parts = []
    for split in splits:
        mine_N = np.array([(split, person) in chosen for person in dataset.subjects(split)])
        if mine_N.any():
            parts.append(Part(dataset=dataset, split=split, sample_N=np.flatnonzero(mine_N)))
    return parts
