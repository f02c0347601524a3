"""Node lists, written out as SLURM's own program writes them out."""

from __future__ import annotations

import random
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_shards.errors import InputError
from slurm.nodelist import expand

CONF = "ClusterName=x\nSlurmctldHost=localhost\nNodeName=n1\nPartitionName=p Nodes=n1\n"


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        ("n[003-005,9],m1", ["n003", "n004", "n005", "n9", "m1"]),
        ("a,a,b", ["a", "a", "b"]),
        ("n[09-11]", ["n09", "n10", "n11"]),
        ("n[1-03]", ["n1", "n2", "n3"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("n[1-2]x[1-2]y[1-2]", ["n1x1y1", "n1x1y2", "n2x1y1", "n2x1y2", "n1x2y1", "n1x2y2", "n2x2y1", "n2x2y2"]),
        (",,gpu-7,", ["gpu-7"]),
        ("", []),
    ],
)
def test_names_are_written_out(nodelist: str, names: list[str]) -> None:
    assert expand(nodelist) == names


@pytest.mark.parametrize("nodelist", ["n[1-3", "n1]", "n[[1]]", "n[3-1]", "n[]", "n[1-3,]", "n[a-b]", "n[1-2]-ib", "n[0-99999]", "n[1:3]"])
def test_what_is_no_list_is_refused_with_its_text(nodelist: str) -> None:
    with pytest.raises(InputError, match="not a list of nodes") as refused:
        expand(nodelist)
    assert repr(nodelist) in str(refused.value)


@pytest.mark.slurm
@pytest.mark.skipif(shutil.which("scontrol") is None, reason="scontrol is not installed: apt-get install slurm-wlm")
def test_a_thousand_random_lists_are_written_out_as_scontrol_does(tmp_path: Path) -> None:
    (tmp_path / "slurm.conf").write_text(CONF)
    environment = {"SLURM_CONF": str(tmp_path / "slurm.conf"), "PATH": "/usr/bin:/bin"}
    rng = random.Random(7)

    def a_range() -> str:
        first = rng.choice([rng.randrange(10), rng.randrange(120), rng.randrange(5000)])
        text = str(first).zfill(rng.randrange(1, 6))
        return text if rng.random() < 0.4 else f"{text}-{str(first + rng.randrange(12)).zfill(rng.randrange(1, 6))}"

    def a_word() -> str:
        return rng.choice("abz") + "".join(rng.choices("az-._0", k=rng.randrange(3)))

    def an_entry() -> str:
        brackets = rng.choice([0, 1, 1, 1, 2, 3])
        return "".join(f"{a_word()}[{','.join(a_range() for _ in range(rng.randrange(1, 4)))}]" for _ in range(brackets)) or a_word()

    lists = [",".join(an_entry() for _ in range(rng.randrange(1, 5))) for _ in range(1000)]

    def theirs(nodelist: str) -> list[str]:
        command = ["scontrol", "show", "hostnames", nodelist]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True).stdout.split()

    with ThreadPoolExecutor(4) as pool:
        for nodelist, names in zip(lists, pool.map(theirs, lists), strict=True):
            assert expand(nodelist) == names, nodelist
