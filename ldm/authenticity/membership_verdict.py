"""What the scores of an attack on a model say of people, in figures and in words.

What difficulty explains of a score is taken out; a person's score is the mean over their images; training people are compared with people
held out. Where the two differ even in what no network was asked for, they are not alike, and there is no verdict.

Legend: N image, P person, M training people, T time, K measure of difficulty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ldm.authenticity.separation import AtLowFpr, Separation, at_low_fpr, auc, holm, least_auc, separation
from ldm.evaluation.intervals import LEAST_PEOPLE

LEVEL = 0.05  # of all attacks together: how often an honest model may be accused
UNLIKE = 0.01  # of all yardsticks together: how often a split at random may be taken for one of unlike people, and bear no verdict


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
    yardsticks = _yardsticks(
        {name: _of_persons(values_N, person_N) for name, values_N in zip(difficulty, difficulty_NK.T, strict=True)}, member_P
    )
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
    return Judgement(
        attacks=attacks,
        yardsticks=yardsticks,
        least_auc=least,
        leaks=None if reason else min(corrected.values()) <= LEVEL,
        verdict=f"no verdict: {reason}" if reason else _in_words(attacks, yardsticks, least, (members, others)),
        reason=reason,
    )


def _yardsticks(measures: Mapping[str, np.ndarray], member_P: np.ndarray) -> dict[str, Yardstick]:
    """Of measures by person."""
    apart = {name: separation(x_P[member_P], x_P[~member_P], alternative="two-sided") for name, x_P in measures.items()}
    corrected = holm({name: found.p_value for name, found in apart.items()})
    return {name: Yardstick(separation=found, p_holm=corrected[name]) for name, found in apart.items()}


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
    told = [f"{name} (AUC {of.separation.auc:.2f}, p = {of.p_holm:.2g})" for name, of in yardsticks.items() if of.p_holm <= UNLIKE]
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


def _in_words(
    attacks: Mapping[str, AttackFigures], yardsticks: Mapping[str, Yardstick], least: float | None, people: tuple[int, int]
) -> str:
    """The verdict, where there is one; it accuses by p-value, and never acquits."""
    unlike = "; ".join(f"{name} AUC {of.separation.auc:.2f}, p = {of.p_holm:.2g}" for name, of in yardsticks.items() if of.p_holm <= LEVEL)
    beside = f" (both sides differ a little by themselves, as one split in twenty does: {unlike})" if unlike else ""
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
        above = f"A training person scores above one held out: by {'; by '.join(told)}"
        return f"the model gives away who was in its training set. {above}{beside}"
    least_p = min(of.p_holm for of in attacks.values() if of.p_holm is not None)
    return f"these attacks do not tell training people from people held out (least p = {least_p:.2g}); {seen}{beside}"
