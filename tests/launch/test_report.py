"""Figures of the report that are worked out there."""

from __future__ import annotations

import pytest

from launch.report.build import time_spent


def test_shares_of_time_weigh_each_row_by_its_own_time() -> None:
    slow = {"samples": 10, "samples_per_s": 1.0, "time/data": 0.5, "time/forward": 0.2}
    fast = {"samples": 30, "samples_per_s": 10.0, "time/data": 0.1, "time/validate": 0.3}
    spent = time_spent([slow, fast])
    assert spent["samples_per_s"] == pytest.approx(30 / 12)
    assert spent["data"] == pytest.approx((10 * 0.5 + 2 * 0.1) / 12)
    assert spent["validate"] == pytest.approx(2 * 0.3 / 12) and spent["step"] == 0
