"""The doctor: true about this machine, and with a command for everything that is not well."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from launch import doctor
from launch.cli import doctor as cli


@pytest.fixture(scope="module")
def found() -> dict[str, doctor.Finding]:
    return {finding.name: finding for findings in doctor.examine(Path("runs")).values() for finding in findings}


def test_it_names_what_is_really_here(found):
    assert found["Python"].found == sys.version.split()[0] and found["Python"].state == "ok"
    assert torch.__version__ in found["torch"].found
    assert ("GPU 0" in found) == torch.cuda.is_available()
    assert found["needed"].state == "ok" and f"torch {torch.__version__}" in found["needed"].found
    assert (found["for the tests"].state == "ok") == all(
        shutil.which(name, path="/usr/sbin:/usr/bin") for name in ("slurmctld", "slurmd", "munged")
    )
    assert {"processor", "memory", "bf16", "codecs", "DeepSpeed", "faiss", "compiler", "MPI", "cluster", "runs"} <= set(found)


def test_what_is_not_well_has_a_command(found):
    for finding in found.values():
        assert finding.mend or finding.state == "ok" or finding.name == "GPU", finding


def test_two_kinds_of_faiss_are_broken_and_the_way_out_is_told():
    finding = doctor.faiss({"faiss-cpu": "1.15.1", "faiss-gpu": "1.15.1"}, None)
    assert finding.state == "broken" and "uninstall -y faiss-cpu faiss-gpu" in finding.mend
    finding = doctor.faiss({}, None)
    assert finding.state == "missing" and "faiss" in finding.name
    finding = doctor.faiss({"faiss-cpu": "1.15.1"}, None)
    assert finding.state == "ok"


@pytest.mark.parametrize(
    ("package", "cuda", "state", "extra"),
    [
        ("faiss-cpu", "12.8", "warn", "[gpu]"),
        ("faiss-cpu", "13.0", "warn", "[gpu-cuda13]"),
        ("faiss-gpu", "12.8", "ok", ""),
        ("faiss-gpu", "13.0", "warn", "[gpu-cuda13]"),
        ("faiss-gpu-cu13-cuvs", "13.0", "ok", ""),
        ("faiss-gpu-cu13-cuvs", "12.8", "warn", "[gpu]"),
        ("faiss-gpu", None, "warn", "[cpu]"),
    ],
)
def test_the_faiss_that_fits_the_machine_is_told(package, cuda, state, extra):
    finding = doctor.faiss({package: "1.15.1"}, cuda)
    assert finding.state == state and finding.mend.rstrip("'").endswith(extra)


def test_another_torch_than_the_pinned_one_is_told(monkeypatch):
    monkeypatch.setattr(doctor, "pinned", lambda name: "0.4.1")
    finding = doctor.torch_build()
    assert finding.state == "warn" and "pins 0.4.1" in finding.found and "constraints.txt" in finding.mend


def test_a_missing_or_old_library_is_broken(monkeypatch):
    real = doctor.installed
    monkeypatch.setattr(
        doctor, "installed", lambda name: {"diffusers": None, "numpy": "1.0"}.get(name, real(name)) if name != "diffusers" else None
    )
    finding = doctor.needed_libraries()
    assert finding.state == "broken" and "diffusers is not installed" in finding.found and "numpy 1.0, needed >=" in finding.found


def test_a_folder_that_cannot_be_written_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    finding = doctor.room_for_runs(tmp_path / "not" / "there")
    assert finding.state == "broken" and str(tmp_path) in finding.mend


@pytest.fixture
def invoke(monkeypatch):
    app = typer.Typer()
    app.command()(cli.command)
    return lambda *words: CliRunner().invoke(app, words)


def test_the_exit_code_is_2_only_when_something_needed_is_broken(invoke, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda runs: {"t": [doctor.missing("n [x]", "[f]", mend="m")]})
    done = invoke("--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["findings"] == [{"topic": "t", "name": "n [x]", "state": "missing", "found": "[f]", "mend": "m"}]
    shown = invoke()
    assert "n [x]" in shown.stdout and "[f]" in shown.stdout and "n [x]: m" in shown.stdout
    monkeypatch.setattr(doctor, "examine", lambda runs: {"t": [doctor.broken("n", "f", mend="m")]})
    assert invoke().exit_code == 2 and json.loads(invoke("--json").stdout)["ok"] is False
