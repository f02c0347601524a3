"""A SLURM of four nodes that faults are done to; the one of two nodes, which is left whole, stands in tests/conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.local_cluster import LocalCluster, missing


@pytest.fixture(scope="session")
def faulty_cluster() -> Iterator[LocalCluster]:
    """Who takes a node of it away gives it back."""
    if reason := missing():
        pytest.skip(reason)
    with LocalCluster(nodes=4) as running:
        yield running


@pytest.fixture
def four_nodes(faulty_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LocalCluster:
    """The same, with this process's SLURM commands pointed to it, and a site that is asked twice a second."""
    for name, value in faulty_cluster.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "site.yaml").write_text("ask_every_seconds: 0.5\n")
    return faulty_cluster
