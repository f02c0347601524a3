"""Results as tables for people: rows of metric, value, interval, floor, floor_interval, n, note, reason and verdict.

`reason` says why a value is None.
"""

from __future__ import annotations

from typing import Any

from ldm.evaluation import spectral

NOT_TOLD_APART = "not told apart here"
FEW_PEOPLE = 10  # held out: with fewer, who they happen to be decides the figure, and that is said beside it


def rows_of_evaluation(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Of an evaluation; n: real / synthetic images. A region that could not be measured has one row."""
    f = result["frechet"]
    images = f"{f['n_real']} / {f['n_synthetic']}"
    few = f"; people: only {f['people_real']}" if f["people_real"] < FEW_PEOPLE else ""
    table = [*_frechet_rows(f, images, few), *_spectral_rows(result["spectral"], images, few), *_ms_ssim_rows(result["ms_ssim"])]
    whole = [{"interval": None, "floor_interval": None, "reason": None, **row} for row in table]
    return [{"verdict": verdict(row), **row} for row in whole]


def _frechet_rows(f: dict[str, Any], images: str, few: str) -> list[dict[str, Any]]:
    rank = "" if f["effective_rank"] is None else f"d={f['d']}, {f['effective_rank_whitened']:.0f} effective"
    return [
        {
            "metric": "Fréchet distance",
            "value": f["value_at_floor_n"] if f["n_floor"] else f["value"],
            "floor": f["floor"],
            "n": f"{f['n_real']} / {f['n_floor'] or f['n_synthetic']}",
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


def _spectral_rows(regions: dict[str, Any], images: str, few: str) -> list[dict[str, Any]]:
    return [
        {
            "metric": f"{name.upper()}, {'field of view' if region == 'fov' else region}",
            "value": regions[region][f"{name}_mean"],
            "interval": regions[region][f"{name}_interval"],
            "floor": regions[region][f"floor_{name}_mean"],
            "floor_interval": regions[region][f"floor_{name}_interval"],
            "n": images,
            "note": "band histograms, nats" + few,
            "reason": regions[region]["reason"],
        }
        for region in spectral.REGIONS
        for name in (("kl", "js") if regions[region]["reason"] is None else ("kl",))
    ]


def _ms_ssim_rows(m: dict[str, Any]) -> list[dict[str, Any]]:
    of_both = {"n": f"{m['pairs_real']} / {m['pairs_synthetic']}", "note": f"pairs, window {m['window']}", "reason": m["reason"]}
    pairs = {"metric": "MS-SSIM of pairs", "value": m["synthetic"], "floor": m["real"], **of_both}
    pairs |= {"interval": m["synthetic_interval"], "floor_interval": m["real_interval"]}
    difference = {"metric": "|MS-SSIM difference|", "value": m["difference"], "floor": m["difference_floor"], **of_both}
    if m["difference_interval"] and m["difference_interval"][0] <= 0 <= m["difference_interval"][1]:
        difference["verdict"] = NOT_TOLD_APART  # the interval of a difference is signed and would not fit beside its size
    return [pairs, difference]


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


def rows_of_audit(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Of an audit; n: synthetic / training images."""
    n = f"{result['synthetic']['n']} / {result['train']['n']}"
    table = []
    for name, d in result["descriptors"].items():
        floor, found, flagged = d["floor_to_train"] or {}, d["synthetic_to_train"], d["flagged"]
        for at, words in (("min", "least"), ("p1", "1 %"), ("median", "median")):
            table.append(
                {"metric": f"{name}: distance to nearest training image, {words}", "value": found[at], "floor": floor.get(at), "note": ""}
            )
        table += [
            {
                "metric": f"{name}: within the floor's nearest 1 %",
                "value": flagged["share_below_p1"],
                "floor": flagged["floor_share_below_p1"],
                "note": "share",
            },
            {
                "metric": f"{name}: nearer than two people are",
                "value": d["share_nearer_than_real"],
                "floor": d["floor_share_nearer_than_real"],
                "note": "share",
            },
            {
                "metric": f"{name}: nearer than the floor's least",
                "value": flagged["below_min"],
                "floor": flagged["expected"],
                "note": "images" if flagged["p_value"] is None else f"images; floor: by chance; p = {flagged['p_value']:.2g}",
            },
            {"metric": f"{name}: training images, but for rounding", "value": flagged["exact"], "floor": 0, "note": "images"},
            {
                "metric": f"{name}: people with flagged images",
                "value": d["by_patient"]["patients_flagged"],
                "floor": None,
                "note": f"of {d['by_patient']['patients']}",
            },
            {
                "metric": f"{name}: repeats in the synthetic set",
                "value": d["duplicates"]["images"],
                "floor": d["duplicates"]["expected"],
                "note": "images; floor: about so many by chance",
            },
        ]
    return [{"interval": None, "floor_interval": None, "n": n, "reason": None, "verdict": "", **row} for row in table]
