"""Whether an audit accuses the honest, and sees copies: many sets drawn from one pool of phantoms, honest ones and such with copies.

Each set draws other people: some are trained on, some held out, and others, one image each, are the synthetic set. A dose of its images
is then exchanged for copies of training images with noise. Of honest sets `ours` is the share that a figure accuses at 5 %, and `equal`
whether its p-values are uniform or above (Kolmogorov, one-sided, 1 %); of others it is the share of copies that are flagged. Not a
benchmark of time.

Legend: N image of the pool, D descriptor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from rounds import finish
from scipy import stats

from data_shards.phantom.eyes import phantom_cube
from data_shards.phantom.persons import PhantomConfig
from ldm.authenticity.descriptors import contrast_descriptor, pooled_descriptor
from ldm.authenticity.judged import Evidence, Judged, judge
from ldm.authenticity.near import near

FIGURES = ("copies", "ratio", "nearer_than_real", "closer_to_training", "data_copying", "repeats")
SPACES = {"pooled": pooled_descriptor, "contrast": contrast_descriptor}
LEVEL = 0.05
NOISE = 0.1  # of each band's deviation


def pool(people: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two images of each of so many people, the later visit second: reflectance (N, C, H, W), and whose they are."""
    config = PhantomConfig(size=size, seed=19)
    images = [phantom_cube(config, subject=who, eye="OD", visit=visit).data_CHW for who in range(people) for visit in (0, 1)]
    return np.stack(images).astype(np.float32), np.repeat(np.arange(people), 2)


def described(images_NCHW: np.ndarray, name: str) -> np.ndarray:
    """In units of each band's mean and deviation over the pool."""
    x_NCHW = torch.from_numpy(images_NCHW)
    mean_C11, std_C11 = x_NCHW.mean((0, 2, 3))[:, None, None], x_NCHW.std((0, 2, 3))[:, None, None]
    return np.concatenate([SPACES[name]((part - mean_C11) / std_C11).numpy() for part in x_NCHW.split(64)])


def one_set(x_ND: np.ndarray, copy_ND: np.ndarray, person_N: np.ndarray, number: int, *, sizes: Sequence[int], dose: float) -> Judged:
    """People of this set's own; every dose-th image a copy."""
    rng = np.random.default_rng((19, number))
    order, (trained, held, made) = rng.permutation(person_N.max() + 1), sizes
    of_train, of_held = (np.isin(person_N, part) for part in (order[:trained], order[trained : trained + held]))
    first_N = 2 * order[trained + held : trained + held + made]
    made_MD, copies = x_ND[first_N].copy(), round(dose * made)
    made_MD[:copies] = copy_ND[rng.choice(np.flatnonzero(of_train), copies, replace=False)]
    itself_M = np.arange(made)
    to_held = near((made_MD, made_MD), x_ND[of_held], person_N[of_held], k=1)
    train_TD, train_T = x_ND[of_train], person_N[of_train]
    evidence = Evidence(
        made=near((made_MD, made_MD), train_TD, train_T),
        held=near((x_ND[of_held],) * 2, train_TD, train_T),
        held_person_N=person_N[of_held],
        train=near((train_TD, train_TD), train_TD, train_T, own_N=train_T),
        train_person_T=train_T,
        made_held_M=to_held.distance_N,
        made_held_index_M=to_held.index_N,
        repeated=near((made_MD, made_MD), made_MD, itself_M, own_N=itself_M, k=1),
        made_cell_M=np.zeros(made, int),
        held_cell_N=np.zeros(int(of_held.sum()), int),
        rows=lambda places: made_MD[places],
        held_own_N=np.full(int(of_held.sum()), np.inf),
    )
    return judge(evidence, rate=0.02, level=LEVEL)


def p_values(sets: Sequence[Judged], figure: str) -> np.ndarray:
    """Of each set; 1 where there is no verdict."""
    found = (getattr(judged, figure).p_value for judged in sets)
    return np.array([1.0 if p_value is None else p_value for p_value in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few people and sets, within a minute: what is asked may not hold")
    args = parser.parse_args()
    size, people, sets, sizes = (32, 120, 20, (30, 40, 40)) if args.quick else (64, 900, 200, (100, 120, 200))
    began, rows = time.monotonic(), []
    images_NCHW, person_N = pool(people, size)
    noise = np.random.default_rng(0).normal(size=images_NCHW.shape).astype(np.float32)
    copies_NCHW = (images_NCHW + NOISE * images_NCHW.std((0, 2, 3))[:, None, None] * noise).round().clip(0, 4095)
    print(f"{len(images_NCHW)} phantoms ({time.monotonic() - began:.0f} s)", flush=True)
    for space in SPACES:
        x_ND, copy_ND = described(images_NCHW, space), described(copies_NCHW, space)
        for dose in (0.0, 0.01, 0.05, 0.2):
            judged = [one_set(x_ND, copy_ND, person_N, number, sizes=sizes, dose=dose) for number in range(sets if not dose else sets // 4)]
            flagged, copies = np.array([of.flagged_M.sum() for of in judged]), round(dose * sizes[2])
            right = np.array([of.flagged_M[:copies].sum() for of in judged])
            case = f"{space}, {100 * dose:g} % copies"
            seen = f"{(flagged > 0).mean():.3f} of {len(judged)} sets have flagged images, {right.mean():.3g} of {copies} copies"
            print(f"{case}: {seen} and {(flagged - right).mean():.3g} others ({time.monotonic() - began:.0f} s)", flush=True)
            least, most = np.mean([of.copies.copies for of in judged], axis=0)
            print(
                f"    copies by count: {least:.3g} to {most:.3g}; no verdict in {sum(bool(of.ratio.reason) for of in judged)} sets",
                flush=True,
            )
            for figure in FIGURES:
                p_S = p_values(judged, figure)
                share, fair = float((p_S <= LEVEL).mean()), stats.kstest(p_S, "uniform", alternative="greater").pvalue
                print(f"    {figure}: p ≤ {LEVEL:g} in {100 * share:.3g} % of the sets, median {np.median(p_S):.2g}", flush=True)
                if not dose:
                    asked = {"other": LEVEL, "ratio": share / LEVEL, "equal": bool(fair > 0.01)}
                    rows.append({"case": f"{case}: {figure}", "ours": share, "unit": "share of sets accused", **asked})
            if copies:
                found = right.mean() / copies
                rows.append({"case": case, "ours": found, "other": 1.0, "unit": "share of copies flagged", "ratio": found, "equal": True})
    finish("authenticity", rows)


if __name__ == "__main__":
    main()
