"""The `cluster` fixture: a real SLURM of two nodes for the session, or the reason why there is none here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "cluster" / "local_cluster.py"


@pytest.fixture(scope="session")
def local_cluster():
    """The script as a module; tests are no package, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location("local_cluster", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def session_cluster(local_cluster):
    if reason := local_cluster.missing():
        pytest.skip(reason)
    with local_cluster.LocalCluster(nodes=2) as running:
        yield running


@pytest.fixture
def cluster(session_cluster, monkeypatch):
    """The running cluster, with this process's SLURM commands pointed to it."""
    for name, value in session_cluster.environ.items():
        monkeypatch.setenv(name, value)
    return session_cluster
