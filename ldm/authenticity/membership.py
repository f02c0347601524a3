"""Whether a trained generator knows the people it was trained on better than people held out: membership inference, by person.

Attacks give each real image a score (attacks.py), which is then judged by person (membership_verdict.py).

Legend: N image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.errors import InputError
from data_shards.reading.dataset import Dataset
from ldm.authenticity.attacks import ATTACKS, DIFFICULTY, attacked
from ldm.authenticity.membership_verdict import LEVEL, Judgement, judged
from ldm.checkpoints.trained import Autoencoder, Denoiser
from ldm.evaluation.measurements import Arrays, ImageMeasurements, Piece, beside, requested, written
from ldm.evaluation.sets import ImagesOfPeople, Part, Watch, evenly
from ldm.evaluation.tables import Row
from ldm.models import striped

FORMAT = "retinaforge-membership-1"  # a new field of the result has a default, or the format another number
TRAIN = "train"
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
