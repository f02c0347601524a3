"""The packages from Python, as docs/python.md shows them: its snippets run, and it names all that they offer."""

from __future__ import annotations

import configparser
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.commands import invoke
from tests.runs import configured
from tests.test_docs import blocks
from tests.test_house import FLOORS, ROOT

PAGE = ROOT / "docs" / "python.md"
ON_SLURM = "from slurm import current"  # the snippet that tests/slurm/test_submission.py runs
LOOP = {"samples": 16, "batch": 8, "log_every": 8, "checkpoint_every": 16, "validate_samples": 4}


def test_every_snippet_runs_in_its_order_beside_a_finished_training(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree = {**configured(loop=LOOP, engine={"tracker": "none"}), "run": "runs/demo", "data": {"dataset": str(packed)}}
    Path("tiny.yaml").write_text(yaml.safe_dump(tree))
    for verb in (["train", "vqgan"], ["encode"], ["train", "diffusion"]):
        invoke(*verb, "tiny.yaml")
    known: dict = {}
    for code in blocks(PAGE, "python"):
        if ON_SLURM not in code:
            exec(compile(code, PAGE.name, "exec"), known)
    assert (known["batch"].position, len(known["batch"].keys)) == (96, 4)
    assert sum(split["count"] for split in known["manifest"].splits.values()) == 20
    assert known["reflectance_BCHW"].shape == known["batch"].cubes_BCHW.shape
    assert known["synthetic"].count("synthetic") == known["copies"].synthetic.n == 32
    assert known["frechet"].value > 0 and known["found"].codes_KD.shape == (16, 4)
    assert known["code"] == 0


@pytest.mark.parametrize("package", FLOORS)
def test_the_page_names_all_that_a_package_offers_and_it_can_be_had(package: str) -> None:
    [row] = re.findall(rf"^\| `{package}` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    module = importlib.import_module(package)
    assert sorted(re.findall(r"`(\w+)`", row)) == sorted(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__) and set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'Datsaet'"):
        _ = module.Datsaet


def test_a_package_by_itself_loads_nothing_that_takes_time() -> None:
    code = f"import sys, {', '.join(FLOORS)}; print(*{{'torch', 'numpy', 'pydantic', 'submitit'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize("package", FLOORS)
def test_an_installed_package_tells_type_checkers_that_it_is_typed(package: str) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert (ROOT / package / "py.typed").exists() and "py.typed" in setup["options.package_data"][package].split(", ")
