"""The house itself: who may import whom, what is installed, and that nothing points to where it cannot be found."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("data_shards", "launch", "ldm", "slurm")


def tracked() -> list[Path]:
    """Files under version control; in a source archive, all files beside the set-up."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    own = [ROOT / name for name in (*FLOORS, "tests", "docs", "benchmarks", ".ci")]
    return [path for folder in own for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return ""  # a picture or an array


def test_the_floors_import_downwards_only():
    """DESIGN: launch over ldm and slurm over data_shards; one importer each of accelerate, faiss, submitit and mpi4py."""
    program = Path(sys.executable).with_name("lint-imports")
    if not program.exists():
        pytest.skip("import-linter is not installed: pip install -e '.[dev]'")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout and " 0 kept" not in done.stdout


@pytest.mark.parametrize("name", FLOORS)
def test_the_packages_are_ours(name):
    """Other projects also call a folder ldm."""
    assert Path(importlib.import_module(name).__file__) == ROOT / name / "__init__.py"


def test_no_two_test_files_share_a_name():
    """Test folders are no packages: pytest imports the second file of a name as the first, and refuses it."""
    names = [path.name for path in tracked() if path.match("test_*.py")]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})


def test_nothing_else_is_installed():
    """tests and benchmarks stay out of site-packages, where they would shadow those of others."""
    from setuptools import find_packages

    include = re.search(r"include =\n((?:    \S+\n)+)", (ROOT / "setup.cfg").read_text())[1].split()
    found = {name.split(".")[0] for name in find_packages(str(ROOT), include=include)}
    assert found == set(FLOORS)
    assert importlib.metadata.version("retinaforge") == importlib.import_module("launch").__version__


@pytest.mark.parametrize("name", FLOORS)
def test_every_folder_of_modules_is_a_package(name):
    """A folder without __init__.py works from the source tree and is left out of an installed package."""
    for folder in {path.parent for path in tracked() if path.suffix == ".py" and path.is_relative_to(ROOT / name)}:
        assert (folder / "__init__.py").exists(), folder


HOMES = re.compile(r"(?<![\w.$}~-])/(?:home|root|Users|work)/[\w.-]+")


def test_no_file_names_a_place_on_somebody_s_machine():
    here = Path(__file__).resolve()
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in tracked()
        if path.resolve() != here
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if (match := HOMES.search(line))
    ]
    assert not found, "\n".join(found)


def test_local_links_in_the_documentation_lead_somewhere():
    broken = []
    for page in (path for path in tracked() if path.suffix == ".md"):
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", text_of(page), flags=re.DOTALL)
        for link in re.findall(r"\]\(<?([^)>\s]+)", prose):
            if not re.match(r"[a-z][a-z0-9+.-]*:|#", link) and not (page.parent / link.partition("#")[0]).exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken, "\n".join(broken)


def test_the_long_fault_tests_have_a_target():
    """What is skipped with 'make faults runs it' is run by it."""
    makefile = (ROOT / "Makefile").read_text()
    [line] = [line for line in makefile.splitlines() if "FAULTS=all" in line]
    for folder in ("tests/faults", "tests/slurm", "tests/launch/test_zero.py"):
        assert folder in line


def imported(path: Path, modules: set[str]) -> set[str]:
    """Our modules that a file imports anywhere in it; what is for type checkers alone is none, but what a package loads on demand is."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not node.orelse:
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {full if (full := f"{node.module}.{name.name}") in modules else node.module for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found & modules


def test_no_files_import_each_other_in_a_circle():
    """Also where the import stands within a function."""
    files = {path.relative_to(ROOT).with_suffix(""): path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")}
    names = {".".join(place.parts).removesuffix(".__init__"): path for place, path in files.items()}
    left = {name: imported(path, set(names)) - {name} for name, path in names.items()}
    assert "ldm.training.loop" in left and "slurm.attempts" in left
    while free := {name for name, others in left.items() if not others & set(left)}:
        left = {name: others for name, others in left.items() if name not in free}
    assert not left, "\n".join(f"{name} <-> {sorted(others & set(left))}" for name, others in left.items())
