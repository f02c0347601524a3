"""An audit as a table for people."""

from __future__ import annotations

from collections.abc import Iterator

from ldm.authenticity.audit import AuditResult
from ldm.authenticity.audit_result import SpaceVerdicts
from ldm.evaluation.tables import Row


def rows_of_audit(result: AuditResult) -> list[Row]:
    """Of an audit; n: synthetic / training images."""
    n = f"{result.synthetic.n} / {result.train.n}"
    return [row for name, figures in result.descriptors.items() for row in _rows(name, figures, n)]


def _rows(name: str, s: SpaceVerdicts, n: str) -> Iterator[Row]:
    distances, real, copies, ratio = s.synthetic_to_train, s.floor_to_train, s.copies, s.ratio
    least, p1, median = (real.min, real.p1, real.median) if real else (None, None, None)
    chance = lambda p_value: "" if p_value is None else f"; p = {p_value:.2g}"  # noqa: E731
    for metric, value, floor, note, reason in (
        ("distance to nearest training image, least", distances.min, least, "", None),
        ("distance to nearest training image, 1 %", distances.p1, p1, "", None),
        ("distance to nearest training image, median", distances.median, median, "", None),
        ("below the threshold", copies.below, copies.expected, f"images{chance(copies.p_value)}", copies.reason),
        ("ratio to the next people below the threshold", ratio.below, ratio.expected, f"images{chance(ratio.p_value)}", ratio.reason),
        ("nearer than two people are", s.nearer_than_real.value, s.nearer_than_real.real, f"share{chance(s.nearer_than_real.p_value)}",
         s.nearer_than_real.reason),
        ("nearest to a training person", s.closer_to_training.share, s.closer_to_training.expected,
         f"share{chance(s.closer_to_training.p_value)}", s.closer_to_training.reason),
        ("C_T", s.data_copying.c_t, 0.0 if s.data_copying.c_t is not None else None, f"low: copying{chance(s.data_copying.p_value)}",
         s.data_copying.reason),
        ("training images, but for rounding", s.flagged.exact, 0, "images", None),
        ("flagged in all", s.flagged.images, 0, "images", None),
        ("people with flagged images", s.by_patient.patients_flagged, None, f"of {s.by_patient.patients}", None),
        ("repeats in the set", s.duplicates.images, s.duplicates.expected, f"images{chance(s.duplicates.p_value)}", s.duplicates.reason),
    ):  # fmt: skip
        yield Row(metric=f"{name}: {metric}", value=value, floor=floor, n=n, note=note, reason=None if value is not None else reason)
