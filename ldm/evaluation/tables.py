"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ldm.evaluation.evaluation_result import EvaluationResult
from ldm.evaluation.mean_spectra import MeanSpectrumDistance
from ldm.evaluation.ms_ssim import MsSsimFigures
from ldm.evaluation.reconstruction import ReconstructionResult
from ldm.evaluation.space import Compared, SpaceFigures
from ldm.evaluation.spectral import SpectralFigures
from ldm.evaluation.vessels import MorphometryFigure

NOT_TOLD_APART = "not told apart here"
NO_INTERVAL = "no interval, no verdict"
FEW_PEOPLE = 10  # held out: with fewer, who they happen to be decides the figure, and that is said beside it


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure beside its floor.

    Attributes:
        value, floor: of the synthetic set, and of real images in its place; None: could not be had.
        interval, floor_interval: 95 %, where there is one.
        excess_interval: 99 %, of value - floor.
        worse: where the set is worse than real images: 'above' the floor, 'below' it, or 'both'.
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
    excess_interval: tuple[float, float] | None = None
    worse: Literal["above", "below", "both"] = "above"
    note: str = ""
    reason: str | None = None
    verdict: str = ""


def rows_of_evaluation(result: EvaluationResult) -> list[Row]:
    """Of an evaluation; n: real / synthetic images. A region that could not be measured has one row."""
    n, people = (result.reference.n, result.synthetic.n), result.reference.subjects
    images, few = f"{n[0]} / {n[1]}", f"people: only {people}" if people < FEW_PEOPLE else ""
    rows = [row for name, figures in result.spaces.items() for row in _space_rows(name, figures, few)]
    rows += [*_spectral_rows(result.spectral, images, few), *_mean_spectrum_rows(result.spectra, images, few)]
    rows += [*_ms_ssim_rows(result.ms_ssim), *_vessel_rows(result.vessels, few)]
    return [replace(row, verdict=row.verdict or verdict(row)) for row in rows]


WORSE: dict[str, Literal["above", "below", "both"]] = {
    "frechet": "above",
    "kid": "above",
    "precision": "below",
    "recall": "below",
    "density": "below",
    "coverage": "below",
    "vendi": "below",
}
TITLES = {"frechet": "Fréchet distance", "kid": "KID", "vendi": "Vendi score"}


def _space_rows(name: str, s: SpaceFigures, few: str) -> Iterator[Row]:
    """Of one feature space, whose name stands in front."""
    images = f"{s.n_real} / {s.n_floor or s.n_synthetic}"
    rank = "" if s.effective_rank is None else f"d={s.d}, {s.effective_rank_whitened:.0f} effective"
    if s.reason:
        yield Row(metric=f"{name}: all", value=None, floor=None, n=f"{s.n_real} / {s.n_synthetic}", note=rank, reason=s.reason)
        return
    for key, worse in WORSE.items():
        note = joined(rank, f"no floor: {s.no_floor}" if s.no_floor else "") if key == "frechet" else ""
        yield _compared_row(f"{name}: {TITLES.get(key, key)}", getattr(s, key), images, joined(note, few), worse)
    i = s.infinity
    yield Row(
        metric=f"{name}: Fréchet distance, N → ∞",
        value=i.value,
        floor=i.floor,
        n=f"{s.n_real} / {s.n_synthetic}",
        note="" if i.value is None else f"± {i.standard_error:.2g}",
        reason=i.reason,
    )
    for bands, figures in s.triplets.items():
        yield _compared_row(f"{name}: Fréchet distance, {bands}", figures, images, few, "above")


def _compared_row(metric: str, c: Compared, n: str, note: str, worse: Literal["above", "below", "both"]) -> Row:
    return Row(
        metric=metric,
        value=c.value,
        interval=c.interval,
        floor=c.floor,
        floor_interval=c.floor_interval,
        excess_interval=c.excess_interval,
        worse=worse,
        n=n,
        note=note,
        reason=c.reason,
    )


def joined(*notes: str) -> str:
    """Those that say something, one after the other."""
    return "; ".join(note for note in notes if note)


def _mean_spectrum_rows(spectra: dict[str, MeanSpectrumDistance], images: str, few: str) -> Iterator[Row]:
    for name, s in spectra.items():
        region = "field of view" if name == "fov" else name
        of_both = {"n": images, "reason": s.reason}
        yield Row(
            metric=f"spectral angle, {region}",
            value=s.angle_rad,
            interval=s.angle_interval,
            floor=s.floor_angle_rad,
            floor_interval=s.floor_angle_interval,
            note=joined("mean spectra, rad", few),
            **of_both,
        )
        if s.reason is None:
            yield Row(
                metric=f"spectral information divergence, {region}",
                value=s.sid,
                interval=s.sid_interval,
                floor=s.floor_sid,
                floor_interval=s.floor_sid_interval,
                note=joined("mean spectra, nats", few),
                **of_both,
            )


def _vessel_rows(vessels: dict[str, MorphometryFigure], few: str) -> Iterator[Row]:
    for name, v in vessels.items():
        yield Row(
            metric=name,
            value=v.synthetic,
            floor=v.real,
            excess_interval=v.excess_interval,
            worse="both",
            n=f"{v.images_real} / {v.images_synthetic}",
            note=joined("beside the reference itself", few),
            reason=v.reason,
            verdict="" if v.reason else vessel_verdict(v),
        )


def vessel_verdict(v: MorphometryFigure) -> str:
    """Whether the vessels differ from the reference's by more than those of other real people do."""
    if v.floor is None:
        return "no floor to compare with"
    if v.excess_interval is None:
        return NO_INTERVAL
    return "unlike real" if v.excess_interval[0] > 0 else NOT_TOLD_APART


def _spectral_rows(figures: SpectralFigures, images: str, few: str) -> Iterator[Row]:
    for name, s in figures.regions.items():
        region = "field of view" if name == "fov" else name
        of_both = {"n": images, "note": joined("band histograms, nats", few), "reason": s.reason}
        yield Row(
            metric=f"KL, {region}",
            value=s.kl_mean,
            interval=s.kl_interval,
            floor=s.floor_kl_mean,
            floor_interval=s.floor_kl_interval,
            excess_interval=s.kl_excess_interval,
            **of_both,
        )
        if s.reason is None:
            yield Row(
                metric=f"JS, {region}",
                value=s.js_mean,
                interval=s.js_interval,
                floor=s.floor_js_mean,
                floor_interval=s.floor_js_interval,
                excess_interval=s.js_excess_interval,
                **of_both,
            )


def _ms_ssim_rows(m: MsSsimFigures) -> list[Row]:
    of_both = {"n": f"{m.pairs_real} / {m.pairs_synthetic}", "note": f"pairs, window {m.window}", "reason": m.reason}
    pairs = Row(
        metric="MS-SSIM of pairs",
        value=m.synthetic,
        interval=m.synthetic_interval,
        floor=m.real,
        floor_interval=m.real_interval,
        excess_interval=m.apart_interval,
        **of_both,
    )
    difference = Row(metric="|MS-SSIM difference|", value=m.difference, floor=m.difference_floor, **of_both)
    return [pairs, replace(difference, verdict=verdict(pairs))]  # its interval is signed and would not fit beside its size


def verdict(row: Row) -> str:
    """What a row says beside its floor. It blames or it abstains: no single metric can praise, for blurred images pass some of them."""
    if row.reason or row.value is None:
        return ""
    if row.floor is None:
        return "no floor to compare with"
    if row.metric == "MS-SSIM of pairs" and row.excess_interval:
        low, high = row.excess_interval
        return "less varied than real" if low > 0 else "more varied than real" if high < 0 else NOT_TOLD_APART
    if (bounds := excess_bounds(row)) is None:
        return NO_INTERVAL
    low, high = bounds
    if (row.worse in ("above", "both") and low > 0) or (row.worse in ("below", "both") and high < 0):
        return "worse than real" if row.worse != "both" else "unlike real"
    return NOT_TOLD_APART


def excess_bounds(row: Row) -> tuple[float, float] | None:
    """What value - floor may be: its own interval where there is one, else what lies between the two intervals; None without any."""
    if row.excess_interval:
        return row.excess_interval
    if row.interval and row.floor_interval:
        return row.interval[0] - row.floor_interval[1], row.interval[1] - row.floor_interval[0]
    return None


def number(value: float | None) -> str:
    """Four digits, or a dash for what could not be had."""
    return "–" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"


def between(bounds: tuple[float, float] | None) -> str:
    """Both ends of an interval; empty without one."""
    return f"{bounds[0]:.3g} … {bounds[1]:.3g}" if bounds else ""


def missing(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Why figures are missing, and which."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.reason:
            found.setdefault(row.reason, []).append(row.metric)
    return found


def rows_of_reconstruction(result: ReconstructionResult) -> list[Row]:
    """Of an autoencoder on people held out; there is no floor, the note says what to compare with."""
    r, none = result, {"floor": None, "n": str(result.cubes)}
    thin = joined(
        "of the originals': 1 as plain, 0 gone",
        "" if r.thin_vessel_nm is None else f"{r.thin_vessel_nm:g} nm",
        f"{r.thin_vessel_images} images",
    )
    return [
        Row(
            metric="PSNR, dB",
            value=r.psnr_db,
            note=f"training mean image: {r.mean_image_psnr_db:.4g}; peak {r.peak_reflectance:.3g} in reflectance",
            **none,
        ),
        Row(metric="spectral angle, rad", value=r.spectral_angle_rad, note="mean over cubes", **none),
        Row(metric="SSIM", value=r.ssim, interval=r.ssim_interval, reason=r.ssim_reason, note="1 for equal images", **none),
        Row(
            metric="contrast of thin vessels",
            value=r.thin_vessel_contrast,
            interval=r.thin_vessel_contrast_interval,
            reason=r.thin_vessel_reason,
            note=thin,
            **none,
        ),
    ]
