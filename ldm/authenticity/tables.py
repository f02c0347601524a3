"""An audit as a table for people."""

from __future__ import annotations

from collections.abc import Iterator

from ldm.authenticity.audit import AuditResult
from ldm.authenticity.audit_result import DescriptorFigures
from ldm.evaluation.tables import Row


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
