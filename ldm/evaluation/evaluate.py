"""Evaluate a synthetic set against real images it was not made from, every figure beside its real-against-real floor.

Legend: N image, P pair, B batch, C band, H W pixels, D feature.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_shards.errors import InputError
from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from ldm.evaluation import frechet, ms_ssim, spectral
from ldm.evaluation.features import Extractor, get_extractor
from ldm.evaluation.sets import Part, Watch, check_comparable, common_fov, evenly, real_parts, silent
from ldm.evaluation.whitening import Whitening, whitening

FRECHET_KEYS = (
    *("value", "value_at_floor_n", "floor", "infinity", "infinity_standard_error", "infinity_floor", "infinity_floor_standard_error"),
    *("kid", "kid_interval", "kid_subset", "kid_floor", "kid_floor_interval", "kid_floor_subset"),
)
FLOORS = tuple(f"floor_{name}" for name in ("kl_C", "js_C", "kl_mean", "kl_interval", "js_mean", "js_interval"))
NOT_TOLD_APART = "not told apart here"
COPIES_WIN = "no people held out: a set of copies would come nearest to the training images"
WHITENED_BY = 4096  # training images at most, evenly spaced
FEW_PEOPLE = 10  # held out: with fewer, who they happen to be decides the figure, and that is said beside it
FORMAT = "retinaforge-evaluation-2"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """
    Attributes:
        against: real split that the synthetic set is compared with; images of held-out people by default.
        limit: at most this many images of each set, evenly spaced; None for all.
        seed: of every subset, pair and resample.
        extractor: a name of ldm.evaluation.features.EXTRACTORS.
        pairs: for MS-SSIM, of each set.
        batch_size: cubes at once.
        device: of the feature network and of MS-SSIM.
    """

    against: str = "val"
    limit: int | None = None
    seed: int = 0
    extractor: str = "seeded-conv-v1"
    pairs: int = 100
    batch_size: int = 8
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one pass over a part leaves."""

    features_ND: np.ndarray
    histograms: spectral.BandHistograms


def measure(
    part: Part, extractor: Extractor, edges_CE: np.ndarray, fov_HW: np.ndarray, config: EvaluateConfig, watch: Watch, title: str
) -> Measured:
    """One pass over a part: features of every image, histograms by unit."""
    histograms = spectral.BandHistograms(edges_CE, scale=part.dataset.scale, offset=part.dataset.offset)
    features = []
    for batch in part.batches(config.batch_size, watch, title):
        features.append(extractor(part.reflectance(batch.cubes_BCHW, config.device)).numpy())
        cubes_BCHW = batch.cubes_BCHW.numpy()
        for b, unit in enumerate(batch.keys if part.independent else batch.subjects):
            histograms.add(
                cubes_BCHW[b], unit=unit, fov_HW=fov_HW, labels_HW=None if batch.labels_BHW is None else batch.labels_BHW[b].numpy()
            )
    return Measured(features_ND=np.concatenate(features), histograms=histograms)


def features_of(part: Part, extractor: Extractor, *, batch_size: int = 8, device: str = "cpu", watch: Watch = silent) -> np.ndarray:
    """Features (N, D) of a part, for whoever wants a Fréchet distance and nothing else."""
    return np.concatenate([extractor(part.reflectance(b.cubes_BCHW, device)).numpy() for b in part.batches(batch_size, watch, "features")])


def whitening_of(
    real: Dataset, extractor: Extractor, *, batch_size: int = 8, device: str = "cpu", watch: Watch = silent
) -> Whitening | None:
    """The whitening by the features of the training split, of which the real set's statistics are."""
    split = real.stats.split
    train = Part(dataset=real, split=split, sample_N=evenly(real.count(split), WHITENED_BY))
    return whitening(features_of(train, extractor, batch_size=batch_size, device=device, watch=watch))


def unfit_reference(part: Part) -> str | None:
    """Why no distance to these real images is a mark of quality; None where it is one."""
    if part.split == "train":
        return COPIES_WIN
    people = len(set(part.units()))
    if people < 2:
        return f"images of one person alone in split {part.split!r}: a spread needs at least 2 people"
    return None


def frechet_figures(
    reference: Part, features: dict[str, np.ndarray], white: Whitening | None, extractor: Extractor, seed: int
) -> dict[str, Any]:
    """The `frechet` part of the result; see `evaluate`.

    Args:
        features: of 'real', 'synthetic' and, where there is one, 'floor', as the extractor gives them.
    """
    result: dict[str, Any] = {
        "extractor": extractor.name,
        "d": extractor.dimension,
        "effective_rank": white and white.effective_rank,
        "effective_rank_whitened": white and white.effective_rank_whitened,
        "n_real": len(features["real"]),
        "people_real": len(set(reference.units())),
        "n_synthetic": len(features["synthetic"]),
        "reason": unfit_reference(reference) or (None if white else "the training images do not differ in their features"),
    }
    if result["reason"] is None and len(features["synthetic"]) < 2:
        result["reason"] = "a synthetic set of one image has no spread"
    if result["reason"]:
        return result | dict.fromkeys(FRECHET_KEYS) | {"n_floor": 0}
    white_ND = {name: white(x_ND) for name, x_ND in features.items()}
    reference_ND, synthetic_ND, floor_ND = white_ND["real"], white_ND["synthetic"], white_ND.get("floor")
    if floor_ND is not None and len(floor_ND) < 2:
        floor_ND = None
    result["value"] = frechet.frechet_distance(reference_ND, synthetic_ND)
    for name, other_ND in (("", synthetic_ND), ("_floor", floor_ND)):
        infinity = None if other_ND is None else frechet.frechet_infinity(reference_ND, other_ND, seed=seed)
        result[f"infinity{name}"] = None if infinity is None else infinity.value
        result[f"infinity{name}_standard_error"] = None if infinity is None else infinity.standard_error
        kid = None if other_ND is None else frechet.kid_with_interval(*frechet.conditioned(reference_ND, other_ND), seed=seed)
        result[f"kid{name}"] = None if kid is None else kid.value
        result[f"kid{name}_interval"] = None if kid is None else kid.interval
        result[f"kid{name}_subset"] = None if kid is None else kid.subset
    n_floor = 0 if floor_ND is None else min(len(synthetic_ND), len(floor_ND))
    result["n_floor"] = n_floor
    result["floor"] = frechet.frechet_at(reference_ND, floor_ND, n_floor, seed=seed) if n_floor else None
    result["value_at_floor_n"] = frechet.frechet_at(reference_ND, synthetic_ND, n_floor, seed=seed) if n_floor else None
    return result


def spectral_figures(reference: Measured, synthetic: Measured, floor: Measured | None, seed: int, *, reason: str | None) -> dict[str, Any]:
    """The `spectral` part of the result; see `evaluate`.

    Args:
        reason: why nothing shall be compared, if so.
    """
    if reason:
        left_out = {**asdict(spectral.SpectralDistance(reason=reason)), **dict.fromkeys(FLOORS)}
        return dict.fromkeys(spectral.REGIONS, left_out)
    result = {}
    for region in spectral.REGIONS:
        real_UCK = reference.histograms.counts_UCK(region)
        figures = asdict(spectral.spectral_distance(real_UCK, synthetic.histograms.counts_UCK(region), seed=seed))
        if region != "fov" and not synthetic.histograms.labelled:
            figures["reason"] = "the synthetic set has no labels" if reference.histograms.labelled else "neither set has labels"
        below = None if floor is None else spectral.spectral_distance(real_UCK, floor.histograms.counts_UCK(region), seed=seed)
        figures |= {name: below and getattr(below, name.removeprefix("floor_")) for name in FLOORS}
        result[region] = figures
    return result


def pair_values(part: Part, config: EvaluateConfig, *, range_: float, window: int, watch: Watch, title: str) -> ms_ssim.PairMean | None:
    """MS-SSIM over seeded pairs of different units of a part; None where it has no such pair."""
    units = part.units()
    pairs_P2 = ms_ssim.draw_pairs(units, config.pairs, seed=config.seed)
    if not len(pairs_P2):
        return None
    stream, size = CubeStream(part.dataset, part.split, batch_size=1), max(1, config.batch_size // 2)
    chunks = [pairs_P2[a : a + size] for a in range(0, len(pairs_P2), size)]
    values = []
    for chunk in watch(chunks, total=len(chunks), title=title, unit="batch"):
        a, b = (part.reflectance(stream.read(part.sample_N[chunk[:, side]]).cubes_BCHW, config.device) for side in (0, 1))
        values.append(ms_ssim.ms_ssim_of_pairs(a, b, range_=range_, window=window))
    return ms_ssim.pair_mean(np.concatenate(values), [(units[i], units[j]) for i, j in pairs_P2], seed=config.seed)


def ms_ssim_figures(reference: Part, synthetic: Part, floor: Part | None, config: EvaluateConfig, watch: Watch) -> dict[str, Any]:
    """The `ms_ssim` part of the result; see `evaluate`."""
    range_, window = ms_ssim.data_range(reference.dataset.stats), ms_ssim.window_for(*reference.dataset.shape[1:])
    result: dict[str, Any] = {
        "window": window,
        "sigma_px": ms_ssim.SIGMA_PX,
        "levels": ms_ssim.LEVELS,
        "data_range": range_,
        "reason": None,
    }
    found: dict[str, ms_ssim.PairMean | None] = {"real": None, "synthetic": None, "floor": None}
    if window is None:
        result["reason"] = "images of 32 pixels or less have no five levels"
    else:
        for name, part in (("real", reference), ("synthetic", synthetic), ("floor", floor)):
            if part is not None:
                found[name] = pair_values(part, config, range_=range_, window=window, watch=watch, title=f"MS-SSIM, {name}")
        if missing := [name for name in ("real", "synthetic") if found[name] is None]:
            result["reason"] = f"no two images of different people in the {' and the '.join(missing)} set"
    for name, mean in found.items():
        result |= {name: mean and mean.mean, f"{name}_interval": mean and mean.interval, f"pairs_{name}": mean.pairs if mean else 0}
    for name, other in (("difference", "synthetic"), ("difference_floor", "floor")):
        both = found["real"] and found[other] and ms_ssim.difference(found[other], found["real"])
        result[name], result[f"{name}_interval"] = both or (None, None)
    return result


def evaluate(real: Dataset, synthetic: Dataset, config: EvaluateConfig, watch: Watch = silent) -> dict[str, Any]:
    """All metrics, as a JSON value without NaN. A figure that could not be had is None, with a `reason` beside it.

    Keys:
        format, reference, synthetic, floor_from: what was compared (path, digest, split, n, subjects).
        config: EvaluateConfig.
        frechet: on features whitened by the training split's (ldm/evaluation/whitening.py): `value` (synthetic to reference), `floor`
            (n_floor other real images to reference), `value_at_floor_n` (what compares with the floor when n_floor < n_synthetic),
            `infinity` (FID∞; None below 40 images), `kid`, `kid_interval`, `kid_subset`, the same with `_floor`; `n_real`,
            `people_real`, `n_synthetic`, `n_floor`, `d`, `extractor`, `effective_rank` of the training features as they are and
            `effective_rank_whitened`; `reason`.
        spectral: {fov | artery | vein | onh: `kl_C`, `js_C` (nats, each band), `kl_mean`, `kl_interval`, `js_mean`,
            `js_interval`, the same with `floor_`, `pixels_*`, `units_*`, `reason`}, and `wavelengths_nm`, `bins`, `fov_pixels`.
        ms_ssim: `real`, `synthetic`, `floor` (mean of pairs), `difference`, `difference_floor`, each with `_interval`
            (of differences: signed); `pairs_*`, `window`, `sigma_px`, `levels`, `data_range`, `reason`.

    Raises:
        InputError: sets that cannot be compared, an empty or unknown split. CorruptData: damaged shards.
    """
    split = check_comparable(real, synthetic)
    if config.limit is not None and config.limit < 2:
        raise InputError(f"limit {config.limit}", expected="at least 2 images of each set")
    reference, floor = real_parts(real, config.against, config.limit)
    generated = Part(dataset=synthetic, split=split, sample_N=evenly(synthetic.count(split), config.limit), independent=True)
    extractor, edges_CE = get_extractor(config.extractor, real.stats), spectral.band_edges(real.stats)
    fov_HW = common_fov(real, real.stats.split if real.stats.split in real.splits else config.against)
    seen = {
        name: measure(part, extractor, edges_CE, fov_HW, config, watch, f"features, {name}")
        for name, part in (("real", reference), ("synthetic", generated), ("floor", floor))
        if part is not None
    }
    features = {name: measured.features_ND for name, measured in seen.items()}
    white = whitening_of(real, extractor, batch_size=config.batch_size, device=config.device, watch=watch)
    bands = {"wavelengths_nm": list(real.wavelengths_nm), "bins": edges_CE.shape[1] + 1, "fov_pixels": int(fov_HW.sum())}
    return {
        "format": FORMAT,
        "reference": reference.described(),
        "synthetic": generated.described(),
        "floor_from": floor and floor.described(),
        "config": asdict(config),
        "frechet": frechet_figures(reference, features, white, extractor, config.seed),
        "spectral": bands
        | spectral_figures(
            seen["real"], seen["synthetic"], seen.get("floor"), config.seed, reason=COPIES_WIN if reference.split == "train" else None
        ),
        "ms_ssim": ms_ssim_figures(reference, generated, floor, config, watch),
    }


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The result as a table for people: metric, value, interval, floor, floor_interval, n (real / synthetic), note, reason, verdict.

    `reason` says why a value is None; a region that could not be measured has one row.
    """
    f, m = result["frechet"], result["ms_ssim"]
    images = f"{f['n_real']} / {f['n_synthetic']}"
    matched = f"{f['n_real']} / {f['n_floor'] or f['n_synthetic']}"
    few = f"; people: only {f['people_real']}" if f["people_real"] < FEW_PEOPLE else ""
    rank = "" if f["effective_rank"] is None else f"d={f['d']}, {f['effective_rank_whitened']:.0f} effective"
    table = [
        {
            "metric": "Fréchet distance",
            "value": f["value_at_floor_n"] if f["n_floor"] else f["value"],
            "floor": f["floor"],
            "n": matched,
            "note": rank + few,
            "reason": f["reason"],
        },
        {
            "metric": "Fréchet distance, N → ∞",
            "value": f["infinity"],
            "floor": f["infinity_floor"],
            "n": images,
            "note": "" if f["infinity"] is None else f"± {f['infinity_standard_error']:.2g}",
            "reason": f["reason"] or ("fewer than 40 images in a set" if f["infinity"] is None else None),
        },
        {
            "metric": "KID",
            "value": f["kid"],
            "interval": f["kid_interval"],
            "floor": f["kid_floor"],
            "floor_interval": f["kid_floor_interval"],
            "n": images,
            "note": f"subsets of {f['kid_subset']}" + few if f["kid_subset"] else "",
            "reason": f["reason"],
        },
    ]
    for region in spectral.REGIONS:
        s = result["spectral"][region]
        for name in ("kl", "js") if s["reason"] is None else ("kl",):
            table.append(
                {
                    "metric": f"{name.upper()}, {'field of view' if region == 'fov' else region}",
                    "value": s[f"{name}_mean"],
                    "interval": s[f"{name}_interval"],
                    "floor": s[f"floor_{name}_mean"],
                    "floor_interval": s[f"floor_{name}_interval"],
                    "n": images,
                    "note": "band histograms, nats" + few,
                    "reason": s["reason"],
                }
            )
    for metric, value, floor in (("MS-SSIM of pairs", "synthetic", "real"), ("|MS-SSIM difference|", "difference", "difference_floor")):
        row = {
            "metric": metric,
            "value": m[value],
            "floor": m[floor],
            "n": f"{m['pairs_real']} / {m['pairs_synthetic']}",
            "reason": m["reason"],
        }
        row["note"] = f"pairs, window {m['window']}"
        if value == "synthetic":
            row |= {"interval": m["synthetic_interval"], "floor_interval": m["real_interval"]}
        elif m["difference_interval"] and m["difference_interval"][0] <= 0 <= m["difference_interval"][1]:
            row["verdict"] = NOT_TOLD_APART  # the interval of a difference is signed and would not fit beside its size
        table.append(row)
    whole = [{"interval": None, "floor_interval": None, "reason": None, **row} for row in table]
    return [{"verdict": verdict(row), **row} for row in whole]


def verdict(row: dict[str, Any]) -> str:
    """What a row says beside its floor. It blames or it abstains: no single metric can praise, for blurred images pass some of them."""
    value, floor = row["value"], row["floor"]
    if row["reason"] or value is None:
        return ""
    if floor is None:
        return "no floor to compare with"
    if not (row["interval"] and row["floor_interval"]):
        return "above the floor" if value > floor else NOT_TOLD_APART
    (low, high), (floor_low, floor_high) = row["interval"], row["floor_interval"]
    if row["metric"] == "MS-SSIM of pairs":
        return "less varied than real" if low > floor_high else "more varied than real" if high < floor_low else NOT_TOLD_APART
    return "worse than real" if low > floor_high else NOT_TOLD_APART
