"""A hundredth of the bulk benchmark: workers are killed, stopped and deceived, and every image is there once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_image_is_made_once_whatever_happens_to_those_who_make_them() -> None:
    words = ["--images", "10000", "--shard", "250", "--kills", "5", "--workers", "3", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "bulk.py", *words], capture_output=True, text=True, timeout=240, check=True, cwd=ROOT
    )
    rows = {row["case"]: row["equal"] for row in json.loads(done.stdout.splitlines()[-1])["rows"]}
    assert list(rows.values()) == [True] * 3 and "3_workers_5_kills" in rows, done.stdout
