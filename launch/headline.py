"""The figures of a run that stand first, and what is wanted of each: in the report, at the end of `run`, in the README."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Attributes:
    key: its name in metrics.json.
    title, meaning: for people.
    form: how its value is written.
    wanted: what it should reach; None: nothing is wanted of it.
    at_most: whether lower is better.
    """

    key: str
    title: str
    meaning: str
    form: str
    wanted: float | None = None
    at_most: bool = False

    def reached(self, value: float) -> bool | None:
        """Whether a value is as wanted; None where nothing is."""
        if self.wanted is None:
            return None
        return value <= self.wanted if self.at_most else value >= self.wanted

    def verdict(self, value: float) -> str:
        """The target, and whether it is reached, in words."""
        if self.wanted is None:
            return ""
        target = f"wanted: {'at most' if self.at_most else 'at least'} {self.form.format(self.wanted)}"
        return f"{target}, {'reached' if self.reached(value) else 'NOT reached'}"


HEADLINE = (
    Figure(
        key="psnr_gain_db",
        title="reconstruction above the training mean image",
        meaning="PSNR of held-out people, within the field of view",
        form="{:.1f} dB",
        wanted=6.0,
    ),
    Figure(key="codes_used", title="codes in use", meaning="share of the codebook used over the training split", form="{:.0%}", wanted=0.5),
    Figure(
        key="frechet_over_gaussian_latents",
        title="Fréchet distance ratio",
        meaning="samples over decoded Gaussian latents of the same moments, to held-out people, on whitened features",
        form="{:.2f}",
        wanted=0.33,
        at_most=True,
    ),
    Figure(key="seconds", title="working time", meaning="of the whole run on this machine", form="{:.0f} s"),
)


EARLIER = "of an earlier version, to the training images; retinaforge evaluate PRESET of this run measures it to people held out"


def known(figures: Mapping[str, Any]) -> Mapping[str, Any]:
    """The figures of metrics.json that mean what is said here: an earlier version's ratio, of which nothing was left out, did not."""
    ratio = "frechet_over_gaussian_latents"
    if ratio not in figures or "left_out" in figures:
        return figures
    return {**figures, ratio: None, "left_out": {ratio: EARLIER}}


def caution(figures: Mapping[str, Any], key: str) -> str:
    """What a reader has to know of a figure of metrics.json, or why it was left out; empty where there is nothing to say."""
    return figures.get("left_out", {}).get(key) or figures.get("cautions", {}).get(key, "")


def stated(figures: Mapping[str, Any]) -> Iterator[tuple[Figure, float | None, str]]:
    """Each figure of metrics.json with its value and what is said of it: its target and cautions, or, without a value, why it was left out.

    One of which metrics.json says nothing is passed over.
    """
    figures = known(figures)
    for figure in HEADLINE:
        value, said = figures.get(figure.key), caution(figures, figure.key)
        if value is not None:
            yield figure, value, "; ".join(filter(None, (figure.verdict(value), said)))
        elif said:
            yield figure, None, f"left out: {said}"


def lines(figures: Mapping[str, Any]) -> list[str]:
    """Each figure of metrics.json on a line: value, target, or why it was left out."""
    return [
        f"{figure.key:30} {words}" if value is None else f"{figure.key:30} {value:<10.4g} {words}".rstrip()
        for figure, value, words in stated(figures)
    ]
