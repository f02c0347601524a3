"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ldm.evaluation.audit import AuditResult
from ldm.evaluation.audit_result import DescriptorFigures
from ldm.evaluation.evaluate import EvaluationResult
from ldm.evaluation.frechet import FrechetFigures
from ldm.evaluation.ms_ssim import MsSsimFigures
from ldm.evaluation.spectral import SpectralFigures

NOT_TOLD_APART = "not told apart here"
FEW_PEOPLE = 10  # held out: with fewer, who they happen to be decides the figure, and that is said beside it


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure beside its floor.

    Attributes:
        value, floor: of the synthetic set, and of real images in its place; None: could not be had.
        interval, floor_interval: 95 %, where there is one.
        n: images, or pairs, of both sides of the comparison.
        note: what else to know of it.
        reason: why there is no value.
        verdict: what it says beside its floor.
    """

    metric: str
    value: float | None
    floor: float | None
    n: str
    interval: tuple[float, float] | None = None
    floor_interval: tuple[float, float] | None = None
    note: str = ""
    reason: str | None = None
    verdict: str = ""


def rows_of_evaluation(result: EvaluationResult) -> list[Row]:
    """Of an evaluation; n: real / synthetic images. A region that could not be measured has one row."""
    f = result.frechet
    images = f"{f.n_real} / {f.n_synthetic}"
    few = f"; people: only {f.people_real}" if f.people_real < FEW_PEOPLE else ""
    rows = [*_frechet_rows(f, images, few), *_spectral_rows(result.spectral, images, few), *_ms_ssim_rows(result.ms_ssim)]
    return [replace(row, verdict=row.verdict or verdict(row)) for row in rows]


def _frechet_rows(f: FrechetFigures, images: str, few: str) -> list[Row]:
    rank = "" if f.effective_rank is None else f"d={f.d}, {f.effective_rank_whitened:.0f} effective"
    return [
        Row(
            metric="Fréchet distance",
            value=f.value_at_floor_n if f.n_floor else f.value,
            floor=f.floor,
            n=f"{f.n_real} / {f.n_floor or f.n_synthetic}",
            note=rank + few,
            reason=f.reason,
        ),
        Row(
            metric="Fréchet distance, N → ∞",
            value=f.infinity,
            floor=f.infinity_floor,
            n=images,
            note="" if f.infinity is None else f"± {f.infinity_standard_error:.2g}",
            reason=f.reason or ("fewer than 40 images in a set" if f.infinity is None else None),
        ),
        Row(
            metric="KID",
            value=f.kid,
            interval=f.kid_interval,
            floor=f.kid_floor,
            floor_interval=f.kid_floor_interval,
            n=images,
            note=f"subsets of {f.kid_subset}" + few if f.kid_subset else "",
            reason=f.reason,
        ),
    ]


def _spectral_rows(figures: SpectralFigures, images: str, few: str) -> Iterator[Row]:
    for name, s in figures.regions.items():
        region = "field of view" if name == "fov" else name
        of_both = {"n": images, "note": "band histograms, nats" + few, "reason": s.reason}
        yield Row(
            metric=f"KL, {region}",
            value=s.kl_mean,
            interval=s.kl_interval,
            floor=s.floor_kl_mean,
            floor_interval=s.floor_kl_interval,
            **of_both,
        )
        if s.reason is None:
            yield Row(
                metric=f"JS, {region}",
                value=s.js_mean,
                interval=s.js_interval,
                floor=s.floor_js_mean,
                floor_interval=s.floor_js_interval,
                **of_both,
            )


def _ms_ssim_rows(m: MsSsimFigures) -> list[Row]:
    of_both = {"n": f"{m.pairs_real} / {m.pairs_synthetic}", "note": f"pairs, window {m.window}", "reason": m.reason}
    pairs = Row(
        metric="MS-SSIM of pairs", value=m.synthetic, interval=m.synthetic_interval, floor=m.real, floor_interval=m.real_interval, **of_both
    )
    difference = Row(metric="|MS-SSIM difference|", value=m.difference, floor=m.difference_floor, **of_both)
    if m.difference_interval and m.difference_interval[0] <= 0 <= m.difference_interval[1]:
        difference = replace(difference, verdict=NOT_TOLD_APART)  # its interval is signed and would not fit beside its size
    return [pairs, difference]


def verdict(row: Row) -> str:
    """What a row says beside its floor. It blames or it abstains: no single metric can praise, for blurred images pass some of them."""
    if row.reason or row.value is None:
        return ""
    if row.floor is None:
        return "no floor to compare with"
    if not (row.interval and row.floor_interval):
        return "above the floor" if row.value > row.floor else NOT_TOLD_APART
    (low, high), (floor_low, floor_high) = row.interval, row.floor_interval
    if row.metric == "MS-SSIM of pairs":
        return "less varied than real" if low > floor_high else "more varied than real" if high < floor_low else NOT_TOLD_APART
    return "worse than real" if low > floor_high else NOT_TOLD_APART


def rows_of_audit(result: AuditResult) -> list[Row]:
    """Of an audit; n: synthetic / training images."""
    n = f"{result.synthetic.n} / {result.train.n}"
    return [row for name, figures in result.descriptors.items() for row in _descriptor_rows(name, figures, n)]


def _descriptor_rows(name: str, d: DescriptorFigures, n: str) -> Iterator[Row]:
    distances, floor, flagged = d.synthetic_to_train, d.floor_to_train, d.flagged
    least, p1, median = (floor.min, floor.p1, floor.median) if floor else (None, None, None)
    by_chance = "images" if flagged.p_value is None else f"images; floor: by chance; p = {flagged.p_value:.2g}"
    for metric, value, below, note in (
        ("distance to nearest training image, least", distances.min, least, ""),
        ("distance to nearest training image, 1 %", distances.p1, p1, ""),
        ("distance to nearest training image, median", distances.median, median, ""),
        ("within the floor's nearest 1 %", flagged.share_below_p1, flagged.floor_share_below_p1, "share"),
        ("nearer than two people are", d.share_nearer_than_real, d.floor_share_nearer_than_real, "share"),
        ("nearer than the floor's least", flagged.below_min, flagged.expected, by_chance),
        ("training images, but for rounding", flagged.exact, 0, "images"),
        ("people with flagged images", d.by_patient.patients_flagged, None, f"of {d.by_patient.patients}"),
        ("repeats in the synthetic set", d.duplicates.images, d.duplicates.expected, "images; floor: about so many by chance"),
    ):
        yield Row(metric=f"{name}: {metric}", value=value, floor=below, n=n, note=note)
